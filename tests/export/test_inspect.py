"""The description: aligned, complete, and undisturbed by what a stranger put into the manifest."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.test_manifest import calibration, document
from twinserve.export.inspect import describe
from twinserve.manifest import OperatingPoint, TensorInput, TextInput

PARITY = {
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
    table = lines[start : start + 4]
    assert table[1].split() == ["0.1", "0.1", "0.12", "99.00", "%", "0.5000"]
    assert table[2].split() == ["0.01", "0.01", "0.02", "90.00", "%", "0.3000"]
    assert table[3].split() == ["0.001", "too", "little", "evidence"]
    assert len({line.index(line.split()[0]) + len(line.split()[0]) for line in table[1:]}) == 1
    assert len({len(line) for line in table[:3]}) == 1


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
    text = describe(document(modality="text", input=TextInput(64, prompts={"query": "q: "})))
    assert "up to 64 tokens, what is beyond is cut off, prompts query" in text
    assert "float32 [3, 4]" in describe(document(modality="tensor", input=TensorInput((3, 4))))
    entries = (
        calibration(dimension=4, aggregation="mean", precision="int8", data_digest=""),
        dataclasses.replace(calibration(), slope=0.0),
    )
    text = describe(document(calibrations=entries))
    assert "Calibration of int8, first 4 numbers, by mean" in text
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
            for name in ("parity", "training")
        }
        assert describe(document(**made)).startswith("letters@1")


def test_describing_needs_neither_torch_nor_a_runtime() -> None:
    code = (
        "import sys, twinserve.export.inspect;"
        "print({'onnx', 'onnxruntime', 'torch', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
