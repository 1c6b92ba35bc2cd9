"""`twinserve export`: which files it writes, what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinserve import manifest as manifests
from twinserve.cli import __main__ as command_line
from twinserve.cli.export import finish
from twinserve.errors import GateFailed
from twinserve.export.assemble import Assembled, Outcome


def call(*arguments: object) -> int:
    return command_line.main([str(argument) for argument in arguments])


def test_a_precision_asked_for_alone_is_a_file_named_by_it(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, plain = trained
    out = tmp_path / "letters.onnx"
    assert call("export", run_dir, "--out", out, "--precision", "fp16", "--json") == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["letters.fp16.onnx"]
    found = manifests.read(tmp_path / "letters.fp16.onnx")
    assert json.loads(capsys.readouterr().out) == json.loads(found.to_json())
    assert (found.name, found.precision) == ("letters", "fp16")
    assert found.space_id == manifests.read(plain).space_id


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--precision", "fp8"], "precision is 'fp8'; known ones are fp32, fp16, int8"),
        (["--precision", ","], "no precision is named"),
        (["--precision", "int8,int8"], "int8 is named twice"),
        (["--out", "t.int8.onnx", "--precision", "fp32,int8"], "give --out t.onnx"),
        (["--name", "my twin"], "name is 'my twin'"),
        (["--out", "none/t.onnx"], "there is no folder none"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_before_any_work(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", tmp_path, "--out", "t.onnx", *flags) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.fixture
def twin(trained: tuple[Path, Path]) -> Assembled:
    return Assembled("fp32", manifests.read(trained[1]), trained[1].read_bytes())


def test_a_refused_precision_is_told_in_a_sentence_and_by_the_exit_code(
    twin: Assembled, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {"int8": GateFailed("the gate of int8 failed: cosine_mean is 0.9")}
    assert finish(Outcome((twin,), refused), Path("t.onnx"), as_json=False) == 1
    captured = capsys.readouterr()
    assert "wrote t.onnx\n" in captured.out
    assert (
        captured.err
        == "twinserve: int8 was not written: the gate of int8 failed: cosine_mean is 0.9\n"
    )
    assert finish(Outcome((), refused), Path("t.onnx"), as_json=False) == 2
    assert finish(Outcome((twin,), {}), Path("t.onnx"), as_json=False) == 0


def test_manifests_of_several_precisions_are_a_list(
    twin: Assembled, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {"int8": GateFailed("the gate of int8 failed")}
    finish(Outcome((twin,), {}), Path("t.onnx"), as_json=True)
    assert json.loads(capsys.readouterr().out)["name"] == "drawings"
    finish(Outcome((twin,), refused), Path("t.onnx"), as_json=True)
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["drawings"]
