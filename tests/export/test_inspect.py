"""The description: aligned, complete, and undisturbed by what a stranger put into the manifest."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_manifest import calibration, document, model
from twinserve.export.inspect import describe
from twinserve.manifest import OperatingPoint, TensorInput, TextInput, attach

PARITY: dict[str, Any] = {
    "source": "torch 2",
    "candidate": "onnxruntime 1",
    "vectors": {
        "inputs": 128,
        "max_abs_difference": {"1": 1e-7, "64": 3e-7, "7": 2e-7},
        "max_cosine_drift": {"1": 1e-13},
        "alone_against_batch": 0.0,
        "limits": {"max_abs_difference": 1e-5, "max_cosine_drift": 1e-6},
    },
    "decisions": {"pairs": 99, "operating_points": 7, "disagreements": 0, "turned_by_rounding": 2},
}
REPORT = {
    "classes": 26,
    "items": 520,
    "equal_error_rate": 0.125,
    "true_accept_rates": [{"false_accept_rate": 0.1, "true_accept_rate": 0.75}],
    "one_shot": {"accuracy": 0.7, "ways": 20, "trials": 400, "low": 0.65, "high": 0.74},
    "at_the_thresholds": [
        {"false_accept_rate": 0.1, "promised_false_accept_rate_upper": 0.12},
        {"false_accept_rate": 0.03, "promised_false_accept_rate_upper": 0.02},
    ],
}


def test_everything_is_there() -> None:
    training = {"loss": "triplet", "classes": {"train": 3}, "config": {"a": [1, 2]}}
    text = describe(document(parity=PARITY, training={**training, "report": REPORT}))
    for part in (
        "letters@1",
        "28 x 28 pixels",
        "8 numbers, unit length",
        "truncations   2, 4",
        "24 classes, 4560 genuine and 110400 impostor pairs",
        "4.00 %",
        "ln LR = 6.000 - 20.000 x distance (even at distance 0.3000)",
        "3e-07 at batch sizes 1, 7, 64 (limit 1e-05)",
        "0 of 99 pairs differ at 7 operating points",
        "a=1,2",
        "70.00 % of 400 trials (95 % interval 65.00 % to 74.00 %)",
        "FAR within its bound at 1 of 2 operating points",
    ):
        assert part in text


def test_operating_points_stand_in_aligned_columns_and_missing_ones_say_why() -> None:
    lines = describe(document()).splitlines()
    start = next(index for index, line in enumerate(lines) if "FAR asked" in line)
    table = lines[start : start + 5]
    assert table[1].split() == ["0.1", "0.1", "0.12", "99.00", "%", "0.5000"]
    assert table[2].split() == ["0.01", "0.01", "0.02", "90.00", "%", "0.3000"]
    assert table[3].split() == ["0.001", "too", "little", "evidence"]
    assert table[4].split() == ["0.0001", "too", "little", "evidence"]
    assert len({line.index(line.split()[0]) + len(line.split()[0]) for line in table[1:]}) == 1
    assert len({len(line) for line in table[:3]}) == 1


def test_what_smaller_rates_would_take_is_said_of_each() -> None:
    text = describe(document())
    assert "The smallest rate that the evidence carries is FAR 0.01." in text
    assert "Instead of the 110,400 impostor pairs of 24 classes set aside, smaller" in text
    rows = [line.split() for line in text.splitlines()]
    # Pairs grow with the rate, classes with its root: 24 x sqrt(10) = 75.9.
    assert ["0.001", "1,104,000", "76"] in rows
    assert ["0.0001", "11,040,000", "240"] in rows
    assert ["1e-05", "110,400,000", "759"] in rows


def test_evidence_of_pairs_speaks_of_pairs_alone() -> None:
    text = describe(document(calibrations=(calibration(evidence="pairs", default_far=0.01),)))
    assert "24 groups, 4560 genuine and 110400 impostor pairs" in text
    assert "judged pairs of the user's" in text
    assert "default rate      FAR 0.01, the smallest that the evidence carries" in text
    assert "Instead of the 110,400 impostor pairs, smaller rates" in text
    assert ["0.001", "1,104,000"] in [line.split() for line in text.splitlines()]


def test_what_a_gate_measured_beyond_the_usual_is_shown_as_it_stands() -> None:
    lengths = [{"tokens": 3, "max_abs_difference": 2e-7, "rows": 2}]
    parity = {
        "source": "torch 2",
        "vectors": {**PARITY["vectors"], "lengths": lengths},
        "figures": [
            {"at_least": 0.99, "figure": "cosine", "value": 0.995},
            {"at_most": 0.005, "figure": "equal error rate", "value": 0.001, "where": "mixed"},
        ],
        "floats": {"layers": ["conv1", "head"], "share": 0.25},
        "trade": [{"layers": index, "cosine": 0.9} for index in range(30)],
    }
    text = describe(document(parity=parity))
    rows = [line.split() for line in text.splitlines()]
    place = rows.index(["lengths:"])
    assert rows[place + 1 : place + 3] == [
        ["tokens", "rows", "max", "abs", "difference"],
        ["3", "2", "2e-07"],
    ]
    assert ["equal", "error", "rate", "mixed", "0.001", "0.005"] in rows
    assert "layers conv1, head, share 0.25" in text
    assert "and 10 more, which --json shows" in text


def test_an_imported_twin_says_where_it_is_from() -> None:
    digests = {f"part_{index}.json": f"{index:02}" * 32 for index in range(3)}
    text = describe(document(origin={"kind": "folder", "files": digests, "pooling": ["mean"]}))
    assert "Origin\n  kind     folder\n  pooling  mean\n\n  files:\n" in text
    assert f"part_1.json  {'01' * 32}\n" in text


def test_a_sample_of_digests_is_not_printed() -> None:
    kept = {"items": {"count": 2, "smallest": "AAAA"}}
    text = describe(document(training={"train_digests": kept}))
    assert "tells data that overlaps them" in text
    assert "AAAA" not in text


def test_a_point_far_below_the_rate_does_not_stand_for_it() -> None:
    points = (OperatingPoint(0.05, 0.06, 0.5, 0.9), OperatingPoint(0.009, 0.02, 0.3, 0.8))
    text = describe(document(calibrations=(calibration(points=points),)))
    rows = [line.split() for line in text.splitlines()]
    assert ["0.1", "too", "little", "evidence"] in rows
    assert ["0.01", "0.009", "0.02", "80.00", "%", "0.3000"] in rows


def test_a_twin_without_calibration_says_so() -> None:
    text = describe(document(calibrations=(), parity={}, training={}))
    assert "this twin gives distances, and decides nothing" in text
    assert "Parity" not in text


def test_other_modalities_and_calibrations_are_named() -> None:
    contract = TextInput(64, prompts={"query": "q: ", "passage": "p: "}, default_prompt="query")
    text = describe(document(modality="text", input=contract))
    assert "up to 64 tokens, what is beyond is cut off" in text
    assert "prompt query    'q: ' (used where a call names none)" in text
    assert "prompt passage  'p: '\n" in text
    assert "input_ids, attention_mask; padded with 0" in text
    assert "float32 [3, 4]" in describe(document(modality="tensor", input=TensorInput((3, 4))))
    entries = (
        calibration(dimension=4, aggregation="nearest_of_5", precision="int8", data_digest=""),
        dataclasses.replace(calibration(), slope=0.0),
    )
    text = describe(document(calibrations=entries))
    assert "Calibration of int8, first 4 numbers\n  Subjects of several items" in text
    assert ["5", "24", "4.00", "%", "0.01", "90.00", "%", "0.02", "0.3000", "-", "-", "-"] in [
        line.split() for line in text.splitlines()
    ]
    assert "they tell nothing" in text


def test_no_line_is_longer_than_a_terminal_likes() -> None:
    settings = {f"setting{index}": index for index in range(60)}
    text = describe(document(training={"config": settings, "report": REPORT}, parity=PARITY))
    assert max(map(len, text.splitlines())) <= 100
    assert "setting59=59" in text


def junk(generator: np.random.Generator, depth: int = 0) -> Any:
    kind = int(generator.integers(8 if depth < 3 else 5))
    if kind < 5:
        return (None, True, 3, -0.5, "x")[kind]
    if kind == 5:
        return [junk(generator, depth + 1) for _ in range(2)]
    keys = ("report", "classes", "vectors", "limits", "max_abs_difference", "one_shot", "config",
            "true_accept_rates", "at_the_thresholds", "decisions", "false_accept_rate")  # fmt: skip
    return {str(key): junk(generator, depth + 1) for key in generator.choice(keys, size=4)}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_stranger_wrote_can_be_described(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(300):
        made = {
            name: {
                key: junk(generator)
                for key in ("report", "vectors", "decisions", "classes", "config", "source")
            }
            for name in ("parity", "training", "origin")
        }
        assert describe(document(**made)).startswith("letters@1")


def test_the_verb_needs_no_runtime_and_reads_past_the_graph(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(attach(model(), document(parity=PARITY, training={"report": REPORT})))
    code = (
        "import sys; from twinserve.cli.__main__ import main;"
        "main(['inspect', sys.argv[1], '--det']);"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'PIL', 'matplotlib', 'tokenizers', 'grpc'};"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "letters@1" in done.stdout
    assert "false rejects" in done.stdout
    assert done.stdout.endswith("imported: []\n")
