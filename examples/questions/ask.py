"""A new question against archived ones: what was it asked before, or is it new?

    python examples/questions/ask.py                    a twin trained on the spot, a minute
    python examples/questions/ask.py --model FOLDER     a sentence-transformers folder, such as
                                                        all-MiniLM-L6-v2

In: a CSV of questions with the intent of each. Its intents are parted: some teach (or, for a ready
model, set the thresholds), some are archived, some are strange to the archive. Out: for new
questions the nearest archived one and whether it is the same intent, and how often that was right.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from twinserve.cli.server_process import ServerProcess
from twinserve.client import Client, EnrollItem, Text

DATA = Path(__file__).parents[2] / "data/banking77/sample.csv"
GALLERY = "archive"
# Of the intents: these shares teach and are archived; the rest is strange.
TEACH, ARCHIVED = 0.6, 0.25
ARCHIVED_EACH = 10  # questions of an intent that are archived; the others are asked
STRANGERS_FOUND = 0.1  # the rate asked for: questions of a strange intent that find any match

Question = tuple[str, str]  # text, intent


def main() -> int:
    """Make the twin, serve it, archive, ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="CSV: text,label (%(default)s)")
    parser.add_argument("--model", type=Path, help="sentence-transformers folder")
    parser.add_argument("--seconds", type=int, default=60, help="of training at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="parts the intents (%(default)s)")
    arguments = parser.parse_args()

    teach, archive, strange = parted(read(arguments.data), arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write(work / "teach.csv", teach)
        twin = work / "questions.onnx"
        if arguments.model:
            twinserve("import", arguments.model, "--out", twin)
            twinserve("calibrate", twin, "--data", work / "teach.csv")
        else:
            settings = ["twin=words", "calibrate_fraction=0.3", "report_fraction=0.1", "patience=3"]
            settings.append(f"max_seconds={arguments.seconds}")
            data = ["--data", work / "teach.csv", "--out", work / "run"]
            twinserve("train", *data, "--set", *settings)
            twinserve("export", work / "run", "--out", twin)
        flags = ["--model", str(twin), "--data-dir", str(work / "data")]
        print(f"$ twinserve serve {' '.join(flags)}")
        with ServerProcess(flags, work / "server.log") as server, Client(server.target) as client:
            ask(client, archive, strange)
    return 0


def read(path: Path) -> list[Question]:
    """Read the CSV's questions."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def write(path: Path, questions: list[Question]) -> None:
    """Write questions as twinserve reads them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *questions])


def parted(questions: list[Question], seed: int) -> tuple[list[Question], ...]:
    """Part the questions by intent: to teach, to archive, strange to the archive."""
    intents = np.random.default_rng(seed).permutation(sorted({intent for _, intent in questions}))
    first, second = round(TEACH * len(intents)), round((TEACH + ARCHIVED) * len(intents))
    parts = [set(part.tolist()) for part in np.split(intents, [first, second])]
    return tuple([q for q in questions if q[1] in part] for part in parts)


def twinserve(verb: str, *arguments: str | Path) -> None:
    """Run one verb of the command line, and show it."""
    line = [verb, *map(str, arguments)]
    print(f"$ twinserve {' '.join(line)}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "twinserve.cli", *line], check=True, stdout=subprocess.DEVNULL
    )


def ask(client: Client, archive: list[Question], strange: list[Question]) -> None:
    """Archive some questions of each intent, and ask the others and the strange ones."""
    archived: list[Question] = []
    asked: list[Question] = []
    for intent in sorted({intent for _, intent in archive}):
        own = [question for question in archive if question[1] == intent]
        archived += own[:ARCHIVED_EACH]
        asked += own[ARCHIVED_EACH:]
    client.create_gallery(GALLERY)
    items = [
        EnrollItem(Text(text), id=f"q{number}", subject=intent)
        for number, (text, intent) in enumerate(archived)
    ]
    client.enroll(GALLERY, items, raise_for_errors=True)
    texts = {f"q{number}": text for number, (text, _) in enumerate(archived)}

    def search(questions: list[Question]) -> list:
        probes = [Text(text) for text, _ in questions]
        return list(client.search(GALLERY, probes, fpir=STRANGERS_FOUND, top_k=5))

    answers, strangers = search(asked), search(strange)
    print(f"\n{len(archived)} questions archived under {len({i for _, i in archived})} intents")
    for (text, intent), hits in list(zip(asked, answers, strict=True))[::8]:
        nearest = hits[0]
        print(f"\n  new       {text}")
        print(f"  nearest   {texts[nearest.item.id]}")
        right = "the same intent" if nearest.subject == intent else f"but it is {intent}"
        print(
            f"            {nearest.subject}, {right}; distance {nearest.distance:.3f}, "
            f"probability {nearest.probability:.0%}, {hits.outcome.value}"
        )
    first = np.mean([h[0].subject == q[1] for q, h in zip(asked, answers, strict=True)])
    five = np.mean([any(x.subject == q[1] for x in h) for q, h in zip(asked, answers, strict=True)])
    one = answers[0]
    print(f"\n{len(asked)} new questions: the nearest has the same intent {first:.1%}, ", end="")
    print(f"one of the five nearest {five:.1%}")
    if one.match is None:
        print("the archive is too small to tell a strange question from a known one")
        return
    matched = np.mean([hits.match for hits in answers])
    found = np.mean([hits.match for hits in strangers])
    rate = one.false_positive_identification_rate or 0.0
    upper = one.false_positive_identification_rate_upper or 1.0
    print(f"decided to be known: {matched:.1%} of them, and {found:.1%} of {len(strange)} strange ")
    print(f"questions; stated: {rate:.1%}, at most {upper:.1%} (evidence: {one.evidence})")


if __name__ == "__main__":
    sys.exit(main())
