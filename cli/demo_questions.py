"""What the demo asks of its server, and shows of the answers.

In: a client, and the drawings of an alphabet that the twin has never seen. Out: printed lines, a
contact sheet, and figures for the summary. Everything goes through the client, as a user's program
would; torch and the pixels answer the same questions beside it.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinserve.cli.inputs import batches
from twinserve.cli.output import plain, print_table
from twinserve.client import Client, Comparison, Embeddings, EnrollItem, Hits, Verification
from twinserve.distance import Metric
from twinserve.errors import DataError

if TYPE_CHECKING:
    from twinserve.train.checkpoint import Run
    from twinserve.train.data import Labelled

WAYS, TRIALS, CLIENTS, SHOWN_HITS = 20, 1000, 16, 5
GALLERY = "latin"


@dataclass(frozen=True)
class Drawings:
    """The report alphabet as files: `labels[i]` is the class of `files[i]`."""

    images: Labelled
    files: tuple[bytes, ...]

    @staticmethod
    def of(images: Labelled, data: Path) -> Drawings:
        """Read the files behind some decoded images.

        Raises:
            DataError: the data lies otherwise than the images' names say.
        """
        if data.is_dir():
            stored = {p.relative_to(data).as_posix(): p for p in data.rglob("*") if p.is_file()}
            prefix = _prefix(list(stored), images.names[0])
            return Drawings(
                images, tuple(stored[prefix + name].read_bytes() for name in images.names)
            )
        with zipfile.ZipFile(data) as archive:
            prefix = _prefix(archive.namelist(), images.names[0])
            return Drawings(images, tuple(archive.read(prefix + name) for name in images.names))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.class_names

    def of_class(self, label: int) -> list[int]:
        """Return the drawings of one class, by name."""
        own = np.flatnonzero(self.images.labels == label).tolist()
        return sorted(own, key=lambda index: self.images.names[index])

    def subject(self, index: int) -> str:
        """Return the identity of a drawing: its character."""
        return self.classes[int(self.images.labels[index])]


def _prefix(stored: Sequence[str], name: str) -> str:
    """Return what the data set's files have before the names that training gave them."""
    for entry in stored:
        if entry == name or entry.endswith(f"/{name}"):
            return entry.removesuffix(name)
    raise DataError(f"{name} is not in the data set; is it the one that was trained on?")


def one_shot(client: Client, trained: Run, drawings: Drawings) -> dict[str, Any]:
    """Ask the same trials of the server, of torch and of the pixels."""
    from twinserve.train.evaluate import (
        embed,
        one_shot_accuracy,
        one_shot_trials,
        pixel_vectors,
    )
    from twinserve.train.intervals import wilson_interval

    images = drawings.images
    trials = one_shot_trials(images.labels, WAYS, TRIALS, groups=images.groups)
    metric = trained.twin.metric

    def one(file: bytes) -> Embeddings:
        return client.embed([file], raise_for_errors=True)

    # One picture a request, as many users would send them: the batcher's work.
    with ThreadPoolExecutor(CLIENTS) as pool:
        served = np.concatenate([reply.vectors for reply in pool.map(one, drawings.files)])
    local = embed(trained.twin, images.rows)
    accuracy = one_shot_accuracy(served, trials, metric)
    low, high = wilson_interval(round(accuracy * TRIALS), TRIALS)
    found = {
        "ways": WAYS,
        "trials": TRIALS,
        "server": accuracy,
        "server_low": low,
        "server_high": high,
        "torch": one_shot_accuracy(local, trials, metric),
        "pixels": one_shot_accuracy(pixel_vectors(images.rows), trials, Metric.EUCLIDEAN),
        "chance": 1 / WAYS,
        "largest_difference_from_torch": float(np.abs(served - local).max()),
    }
    print(f"  through the server         {accuracy:6.1%}  (95 %: {low:.1%} to {high:.1%})")
    print(f"  the same trials in torch   {found['torch']:6.1%}")
    print(f"  1-nearest-neighbour on pixels {found['pixels']:3.1%}")
    print(f"  chance                     {1 / WAYS:6.1%}")
    print(
        f"  largest difference of an embedding from torch: "
        f"{found['largest_difference_from_torch']:.1e}"
    )
    return found


def search(client: Client, drawings: Drawings, out: Path) -> dict[str, Any]:
    """Enrol the first drawing of each character, and search with all the others."""
    client.create_gallery(GALLERY)
    enrolled = [drawings.of_class(label)[0] for label in range(len(drawings.classes))]
    items = [
        EnrollItem(drawings.files[i], id=drawings.subject(i).rpartition("/")[2],
                   subject=drawings.subject(i))
        for i in enrolled
    ]  # fmt: skip
    client.enroll(GALLERY, items, raise_for_errors=True)
    probes = [i for i in range(len(drawings.files)) if i not in set(enrolled)]
    start = time.monotonic()
    found: list[Hits] = []
    for batch in batches(probes, 64):
        files = [drawings.files[i] for i in batch]
        found.extend(client.search(GALLERY, files, SHOWN_HITS).checked())
    elapsed = time.monotonic() - start
    truth = [drawings.subject(i) for i in probes]
    first = [hits[0].subject == t for hits, t in zip(found, truth, strict=True)]
    among = [t in [h.subject for h in hits] for hits, t in zip(found, truth, strict=True)]
    matched = [hits.match is True for hits in found]
    result: dict[str, Any] = {
        "enrolled": len(items),
        "probes": len(probes),
        "rank_1": float(np.mean(first)),
        f"rank_{SHOWN_HITS}": float(np.mean(among)),
        "outcomes": {
            outcome: sum(hits.outcome.value == outcome for hits in found)
            for outcome in ("match", "no match", "not calibrated")
        },
        "matched_and_right": sum(m and f for m, f in zip(matched, first, strict=True)),
        "seconds": round(elapsed, 3),
    }
    print(f"  {len(items)} enrolled, one drawing each; {len(probes)} probes in {elapsed:.2f} s")
    print(
        f"  nearest is right {result['rank_1']:.1%}, right one among {SHOWN_HITS} nearest "
        f"{result[f'rank_{SHOWN_HITS}']:.1%} (chance {1 / len(items):.1%})"
    )
    outcomes = ", ".join(f"{count} {name}" for name, count in result["outcomes"].items())
    print(
        f"  decisions: {outcomes}; {result['matched_and_right']} matched with the right one first"
    )
    sheet = _contact_sheet(drawings, enrolled, probes, found, result, out)
    print(f"  contact sheet: {sheet}")
    _leave_files(drawings, enrolled, probes, out)
    return result


def _contact_sheet(
    drawings: Drawings,
    enrolled: Sequence[int],
    probes: Sequence[int],
    found: Sequence[Hits],
    result: dict[str, Any],
    out: Path,
) -> Path:
    from twinserve.cli.contact_sheet import Tile, draw

    picture_of = {drawings.subject(i): drawings.files[i] for i in enrolled}
    rows = []
    chosen = _one_of_each(drawings, probes)
    for probe, hits in zip(probes, found, strict=True):
        if probe not in chosen:
            continue
        truth = drawings.subject(probe)
        row = [Tile(drawings.files[probe], _short(truth), "probe")]
        for hit in hits:
            row.append(
                Tile(
                    picture_of[hit.subject],
                    _short(hit.subject),
                    f"{hit.distance:.3f}" + (" match" if hit.match else ""),
                    right=hit.subject == truth,
                )
            )
        rows.append(row)
    path = out / "contact_sheet.png"
    draw(
        rows,
        "Who is this? One drawing enrolled per character of an alphabet never trained on",
        f"Probe (blue), then its {SHOWN_HITS} nearest with their distance. Green is the right "
        "character; red a wrong one, in first place or (faint) behind.\n"
        f"Over all {result['probes']} probes the nearest is right in {result['rank_1']:.1%}, by "
        f"chance in {1 / result['enrolled']:.1%}.",
        path,
    )
    return path


def _one_of_each(drawings: Drawings, probes: Sequence[int]) -> set[int]:
    """Return one probe per character, each by the next hand."""
    chosen = set()
    for label in range(len(drawings.classes)):
        own = [i for i in drawings.of_class(label) if i in set(probes)]
        chosen.add(own[label % len(own)])
    return chosen


def _leave_files(
    drawings: Drawings, enrolled: Sequence[int], probes: Sequence[int], out: Path
) -> None:
    """Leave some drawings as files, to go on with by hand."""
    for folder, chosen in (
        ("enrolled", enrolled),
        ("probes", sorted(_one_of_each(drawings, probes))),
    ):
        (out / folder).mkdir(exist_ok=True)
        for index in chosen:
            name = f"{_short(drawings.subject(index))}.png"
            (out / folder / name).write_bytes(drawings.files[index])


def _short(subject: str) -> str:
    return subject.rpartition("/")[2].replace("character", "")


def compare(client: Client, drawings: Drawings) -> list[Any]:
    """Compare some pairs, the same character and not."""
    generator = np.random.default_rng(1)
    labels = generator.permutation(len(drawings.classes))[:4].tolist()
    pairs = []
    for label, other in zip(labels, labels[1:] + labels[:1], strict=True):
        first, second = generator.choice(drawings.of_class(label), 2, replace=False).tolist()
        pairs += [(first, second), (first, int(generator.choice(drawings.of_class(other))))]
    results = client.compare([(drawings.files[a], drawings.files[b]) for a, b in pairs]).checked()
    print_table(
        ("first", "second", "same", "distance", "threshold", "decision", "probability"),
        [
            (
                _short(drawings.subject(a)),
                _short(drawings.subject(b)),
                drawings.subject(a) == drawings.subject(b),
                comparison.distance,
                comparison.threshold,
                comparison.outcome.value,
                comparison.probability,
            )
            for (a, b), comparison in zip(pairs, results, strict=True)
        ],
        indent="  ",
    )
    return [
        {
            "first": drawings.images.names[a],
            "second": drawings.images.names[b],
            **plain(comparison),
        }
        for (a, b), comparison in zip(pairs, results, strict=True)
    ]


def verify(client: Client, drawings: Drawings) -> dict[str, Any]:
    """Verify every probe as the character it is, and as one that it is not."""
    generator = np.random.default_rng(2)
    count = len(drawings.classes)
    claims = []
    for label in range(count):
        for probe in drawings.of_class(label)[1:]:
            other = (label + int(generator.integers(1, count))) % count
            claims += [(probe, label, True), (probe, other, False)]

    def ask(claim: tuple[int, int, bool]) -> Verification:
        probe, label, _ = claim
        return client.verify(GALLERY, drawings.classes[label], drawings.files[probe])

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, claims))
    accepted = {
        truth: [
            answer.match is True
            for answer, claim in zip(answers, claims, strict=True)
            if claim[2] is truth
        ]
        for truth in (True, False)
    }
    first = answers[0]
    falsely = float(np.mean(accepted[False]))
    result = {
        "claims": len(claims),
        "true_accept_rate": float(np.mean(accepted[True])),
        "false_accept_rate": falsely,
        "stated_false_accept_rate": first.false_accept_rate,
        "stated_upper_bound": first.false_accept_rate_upper,
        "example": {"subject": drawings.classes[claims[0][1]], **plain(first)},
    }
    print(
        f"  verify, the first of {len(claims)} claims: a drawing of {_short(drawings.classes[0])} "
        f"as {_short(drawings.classes[0])}: {first.outcome.value} at distance {first.distance:.4f}"
    )
    print(f"  true claims accepted  {result['true_accept_rate']:6.1%}")
    print(f"  false claims accepted {falsely:6.1%}{beside_the_stated(falsely, first)}")
    return result


def beside_the_stated(found: float, stated_by: Comparison) -> str:
    """Say what the twin states of false accepts, and where more were found, why."""
    rate, upper = stated_by.false_accept_rate, stated_by.false_accept_rate_upper
    if rate is None or upper is None:
        return ""
    stated = f" (the twin states {rate:.1%}, at most {upper:.1%})"
    if found > upper:
        stated += (
            "\n    more, since it states that of letters like those which set its thresholds,"
            "\n    and these are of another alphabet (docs/decisions.md#what-breaks-a-promise)"
        )
    return stated


def metrics(text: str) -> dict[str, float]:
    """Pick a few figures out of the Prometheus text."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            family = name.partition("{")[0]
            samples[family] = samples.get(family, 0.0) + float(value)
    rows, runs = samples["twinserve_batch_rows_sum"], samples["twinserve_batch_rows_count"]
    seconds = samples["twinserve_inference_seconds_sum"]
    found = {
        "requests": samples["twinserve_request_seconds_count"],
        "rows_embedded": rows,
        "runs": runs,
        "mean_batch": rows / runs,
        "inference_seconds_per_row": seconds / rows,
        "gallery_items": samples["twinserve_gallery_items"],
    }
    print(f"  {found['requests']:.0f} requests, {rows:.0f} rows embedded in {runs:.0f} runs")
    print(
        f"  mean batch {found['mean_batch']:.1f} rows, "
        f"{found['inference_seconds_per_row'] * 1e6:.0f} microseconds of inference a row"
    )
    return found
