"""What the doctor finds on this machine, with twins that are small."""

from __future__ import annotations

from pathlib import Path

from tests import twins
from twinserve.server.runtime.examining import examine
from twinserve.server.runtime.planning import Asked
from twinserve.server.runtime.providers import CPU, CUDA, Runtime


def test_a_device_that_does_not_run_is_a_fault_with_its_reason(tmp_path: Path) -> None:
    runtime = Runtime(lambda: [CPU], tmp_path / "none.so")
    answer = examine("cuda", runtime=runtime)
    assert answer.device is None
    assert "no CUDA provider" in answer.faults[0]
    assert {p.name: p.missing is None for p in answer.providers}[CUDA] is False


def test_a_twin_and_the_form_beside_it_are_timed_as_a_server_would_run_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    # The exporter names the other precisions so; in this one the weights are rounded.
    sibling = tmp_path / "small.int8.onnx"
    sibling.write_bytes(twins.small_image_twin(calibrated=False, precision="int8"))
    answer = examine("cpu", [path], tmp_path / "data", Asked(1, 1))
    first, second = answer.twins
    assert (first.path, second.path) == (path, sibling)
    assert first.rows_per_second > 0
    assert first.latency > 0
    assert first.faster is None
    assert second.faster is not None
    assert answer.faults == ()
    assert answer.data_dir is not None
    assert answer.device == "cpu"


def test_a_file_that_is_no_twin_is_a_fault_and_the_others_are_timed(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(twins.small_tensor_twin())
    bad.write_bytes(b"nothing")
    answer = examine("cpu", [bad, good, tmp_path / "none.onnx"], None, Asked(1, 1))
    assert [twin.path for twin in answer.twins] == [good]
    assert len(answer.faults) == 2
    assert "none.onnx is not a file" in answer.faults[1]
