"""What is advised on machines that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from twinserve.server.runtime.advice import advice_on_machine, advice_on_precision
from twinserve.server.runtime.diagnosis import Advice, Timed
from twinserve.server.runtime.machine import Folder, Processors
from twinserve.server.runtime.planning import Plan, Setting
from twinserve.server.runtime.providers import CPU, CUDA, Device

TWIN = Timed(
    path=Path("twin.onnx"),
    name="faces",
    precision="fp32",
    space_id="a",
    plan=Plan(Setting(1, 2), ""),
    rows_per_second=100.0,
    latency=0.01,
    resident=1 << 20,
    tokens=None,
)
INT8 = replace(TWIN, path=Path("twin.int8.onnx"), precision="int8", faster=1.9)


def found(advice: list[Advice]) -> str:
    return "\n".join(one.found for one in advice)


def test_a_wide_machine_with_a_quick_disk_needs_no_advice() -> None:
    folder = Folder(Path("data"), 1 << 40, 2000.0)
    assert advice_on_machine(Processors(8, 8, None), 65536, folder) == []


@pytest.mark.parametrize(
    ("processors", "says"),
    [
        (Processors(8, 8, 2.0), "the quota grants 2 of 8 processors"),
        (Processors(8, 8, 1.5), "the begun one is taken away"),
        (Processors(8, 2, None), "may run on 2 of 8 processors"),
        (Processors(8, 2, 16.0), "may run on 2 of 8 processors"),
    ],
)
def test_what_holds_the_processors_down_is_named(processors: Processors, says: str) -> None:
    assert says in found(advice_on_machine(processors, 65536, None))


def test_few_files_a_slow_disk_and_a_full_one_are_each_told() -> None:
    folder = Folder(Path("data"), 100 << 20, 60.0)
    told = found(advice_on_machine(Processors(2, 2, None), 1024, folder))
    assert "1024 files may be open" in told
    assert "syncs 60 times a second" in told
    assert "100 MB are free" in told


def test_the_faster_precision_is_advised_by_what_was_measured() -> None:
    (advice,) = advice_on_precision([TWIN, INT8], ("AVX2",), Device(CPU, {}))
    assert "int8 runs 1.90 times as many rows a second as fp32" in advice.found
    assert "no VNNI" in advice.found
    assert "serve twin.int8.onnx" in advice.do
    (advice,) = advice_on_precision([TWIN, INT8], ("AVX2", "VNNI"), Device(CPU, {}))
    assert "multiplies bytes by VNNI" in advice.found
    slower = replace(INT8, faster=0.8)
    (advice,) = advice_on_precision([TWIN, slower], (), Device(CPU, {}))
    assert advice.do == "serve twin.onnx"


def test_a_twin_of_another_space_is_not_compared() -> None:
    other = replace(INT8, space_id="b", faster=None)
    (advice,) = advice_on_precision([TWIN, other], (), Device(CPU, {}))
    assert "no int8 form of twin.onnx" in advice.found


def test_a_card_wants_the_fp16_form() -> None:
    (advice,) = advice_on_precision([TWIN], (), Device(CUDA, {"device_id": "0"}))
    assert "--precision fp32,fp16" in advice.do
