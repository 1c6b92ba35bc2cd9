"""`twinserve doctor` as it is typed, on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import twins
from twinserve.cli.__main__ import main


def test_it_tells_what_this_machine_offers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"{len(os.sched_getaffinity(0))} by affinity" in out
    assert "CUDAExecutionProvider" in out
    assert "a server would use cpu" in out


def test_its_document_holds_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_tensor_twin())
    flags = ["--model", str(path), "--data-dir", str(tmp_path / "data"), "--runners", "1"]
    assert main(["doctor", "--device", "cpu", *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["usable_processors"] >= 1
    assert document["memory"]["total"] > 0
    assert document["data_dir"]["syncs_per_second"] > 0
    (twin,) = document["twins"]
    assert twin["rows_per_second"] > 0
    assert twin["plan"]["setting"]["runners"] == 1
    assert {one["name"] for one in document["providers"]} >= {
        "CPUExecutionProvider",
        "CUDAExecutionProvider",
    }


def test_what_keeps_a_server_from_starting_is_printed_and_told_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--device", "cpu", "--model", str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx is not a file" in capsys.readouterr().out
    assert main(["doctor", "--device", "tpu"]) == 2
    assert "--device tpu is unknown" in capsys.readouterr().err


def test_a_twin_is_printed_with_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_text_twin(calibrated=False))
    assert main(["doctor", "--device", "cpu", "--model", str(path)]) == 0
    out = capsys.readouterr().out
    assert "rows/s of 16 tokens" in out
    assert "runners × threads: " in out
    assert "no int8 form of twin.onnx" in out
