"""`twinserve import`: its flags, the table of guesses, what it prints, and how it ends."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.export.imports.conftest import (
    picture_graph,
    save_onnx_folder,
    text_graph,
    vector_graph,
)
from twinserve import manifest as manifests
from twinserve.cli import __main__ as command_line
from twinserve.manifest import ImageInput, TextInput


def call(*arguments: object) -> int:
    return command_line.main(["import", *(str(argument) for argument in arguments)])


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    return save_onnx_folder(tmp_path / "model", text_graph())


def test_guesses_are_shown_with_their_reason_and_their_flag(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(text_model, "--out", tmp_path / "mine.onnx", "--max-tokens", 20) == 0
    captured = capsys.readouterr()
    rows = {line.split("  ")[0]: line for line in captured.err.splitlines()}
    assert rows["ASKED"].split() == ["ASKED", "TAKEN", "BECAUSE", "SET", "WITH"]
    assert "guessed: most encoders of sentences pool so" in rows["pooling"]
    assert rows["pooling"].endswith("--pooling")
    assert "you said so" in rows["longest text"]
    assert "guessed" not in rows["longest text"]
    assert f"wrote {tmp_path / 'mine.onnx'}" in captured.out
    assert "no thresholds yet: twinserve calibrate" in captured.out
    assert manifests.read(tmp_path / "mine.onnx").name == "mine"


def test_flags_of_texts_reach_the_twin_and_json_is_its_manifest(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.onnx"
    flags = ["--name", "mine", "--version", "2", "--metric", "euclidean", "--pooling", "mean+cls"]
    flags += ["--prompt", "query=find: ", "--prompt", "none=", "--default-prompt", "query"]
    flags += ["--truncations", "8,4", "--dimension", "12", "--no-normalize", "--pad-id", "1"]
    assert call(text_model, "--out", out, *flags, "--json") == 0
    found = manifests.read(out)
    assert json.loads(capsys.readouterr().out) == json.loads(found.to_json())
    assert (found.name, found.version, found.metric) == ("mine", "2", "euclidean")
    assert (found.dimension, found.truncations, found.normalized) == (12, (8, 4), False)
    assert isinstance(found.input, TextInput)
    assert found.input.prompts == {"query": "find: ", "none": ""}
    assert (found.input.default_prompt, found.input.pad_id) == ("query", 1)
    assert found.origin["pooling"] == ["cls", "mean"]


def test_flags_of_pictures_reach_the_twin(tmp_path: Path) -> None:
    onnx.save(picture_graph(pooled=False), tmp_path / "any.onnx")
    flags = ["--size", "16x16", "--color-order", "BGR", "--resize", "pad", "--resample", "bicubic"]
    flags += ["--scale", "1/127.5", "--mean", "1", "--std", "1,1,1", "--pooling", "mean"]
    assert call(tmp_path / "any.onnx", "--out", tmp_path / "t.onnx", *flags) == 0
    found = manifests.read(tmp_path / "t.onnx")
    assert isinstance(found.input, ImageInput)
    contract = found.input
    assert (contract.color_order, contract.resize, contract.resample) == ("BGR", "pad", "bicubic")
    pixels = found.origin["pixels"]
    assert (pixels["scale"], pixels["mean"]) == (pytest.approx(1 / 127.5), [1.0] * 3)


def test_data_sets_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(vector_graph(), tmp_path / "any.onnx")
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    centres = generator.normal(size=(12, 6))
    vectors = (centres[labels] + 0.1 * generator.normal(size=(72, 6))).astype(np.float32)
    np.savez(tmp_path / "parts.npz", vectors=vectors, labels=labels)
    out = tmp_path / "t.onnx"
    assert call(tmp_path / "any.onnx", "--out", out, "--data", tmp_path / "parts.npz") == 0
    (items,) = (entry for entry in manifests.read(out).calibrations if entry.aggregation == "item")
    assert items.points
    assert "no thresholds yet" not in capsys.readouterr().out


def test_pairs_with_scores_are_judged_by_a_limit(text_model: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    words = ["card", "transfer", "account", "cash", "country", "payment"]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "score"])
        for number in range(300):
            one, other = generator.choice(words, 2, replace=False)
            same = number % 3 == 0
            second = f"{one if same else other} and {number} why"
            writer.writerow([f"my {one} {number}", second, 4.5 if same else 1.0])
    out = tmp_path / "t.onnx"
    flags = ["--pairs", tmp_path / "pairs.csv", "--same-above", "4"]
    assert call(text_model, "--out", out, *flags) == 0
    assert {entry.evidence for entry in manifests.read(out).calibrations} == {"pairs"}


def test_several_precisions_are_several_files(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(text_model, "--out", tmp_path / "t.onnx", "--precision", "fp32, fp16", "--json")
    captured = capsys.readouterr()
    written = sorted(entry.name for entry in tmp_path.glob("t*.onnx"))
    documents = json.loads(captured.out)
    documents = documents if isinstance(documents, list) else [documents]
    assert [document["precision"] for document in documents] == ["fp32", "fp16"]
    assert written == ["t.fp16.onnx", "t.onnx"]
    assert code == 0
    spaces = {manifests.read(tmp_path / name).space_id for name in written}
    assert len(spaces) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--prompt", "query"], "'query' is not NAME=TEXT"),
        (["--size", "ax4"], "is no size such as 224x224"),
        (["--scale", "1/0"], "'1/0' is no number"),
        (["--mean", "a,b"], "'a' is no number"),
        (["--truncations", "0"], "0 is below 1"),
        (["--truncations", "8,b"], "'8,b' is no list such as 256,128"),
        (["--metric", "dot"], "'dot' is no metric; known are euclidean, cosine"),
    ],
)
def test_flags_that_cannot_be_read_are_wrong_usage(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = call(tmp_path, "--out", "t.onnx", *flags)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_a_model_that_no_twin_can_be_is_one_sentence_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(vector_graph(batch=4), tmp_path / "any.onnx")
    out = tmp_path / "t.onnx"
    assert call(tmp_path / "any.onnx", "--out", out) == 2
    captured = capsys.readouterr()
    assert "fixes its batch to 4" in captured.err.splitlines()[-1]
    assert (captured.out, out.exists()) == ("", False)
    assert call(tmp_path / "any.onnx", "--out", out, "--open-batch") == 0


def test_the_command_as_it_is_typed(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("where is my card\nwhy was it declined\n")
    command = [sys.executable, "-m", "twinserve.cli", "import", str(text_model)]
    command += ["--out", str(tmp_path / "t.onnx"), "--samples", str(tmp_path / "lines.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert manifests.read(tmp_path / "t.onnx").parity["samples"] == "given"
