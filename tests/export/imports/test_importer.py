"""From a path to files: which kind it is, what it is measured on, and what stands in the twin."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.export.imports.conftest import (
    SentenceFolder,
    picture_graph,
    save_modules,
    save_onnx_folder,
    save_pooling,
    save_vit,
    text_graph,
    vector_graph,
    write_json,
)
from twinserve import manifest as manifests
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError, GateFailed, ManifestError
from twinserve.export.imports import importer
from twinserve.export.imports.importer import Import, Measure, import_model
from twinserve.manifest import Manifest, TextInput
from twinserve.train.pretrained.folders import weight_files
from twinserve.train.pretrained.settings import Answers, Settings

WORDS = ("card", "transfer", "account", "cash", "country", "payment", "pin", "fee")


def run(
    path: Path, out: Path, measure: Measure | None = None, **flags: object
) -> tuple[Manifest, Import]:
    found = import_model(path, out, settings=Settings(**flags), measure=measure)
    return manifests.read(found.paths["fp32"]), found


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    return save_onnx_folder(tmp_path / "model", text_graph())


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    onnx.save(vector_graph(), tmp_path / "any.onnx")
    return tmp_path / "any.onnx"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Labelled texts: what a class has in common is one word."""
    generator = np.random.default_rng(0)
    path = tmp_path / "questions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for word in WORDS:
            for _ in range(8):
                others = generator.choice(["is", "my", "why", "the", "in", "to"], 2)
                writer.writerow([" ".join([word, word, word, *others]), word])
    return path


class TestMeasuredOn:
    def test_built_in_texts_where_nothing_is_given(self, text_model: Path, tmp_path: Path) -> None:
        found, _ = run(text_model, tmp_path / "t.onnx")
        assert found.parity["samples"] == "built in"
        assert found.parity["vectors"]["inputs"] > 20
        assert found.calibrations == ()
        assert found.name == "t"
        assert found.modality == "text"

    def test_labelled_texts_with_thresholds_for_every_truncation(
        self, text_model: Path, questions: Path, tmp_path: Path
    ) -> None:
        found, _ = run(text_model, tmp_path / "t.onnx", Measure(data=questions), truncations=(6, 4))
        assert found.truncations == (6, 4)
        items = [entry for entry in found.calibrations if entry.aggregation == "item"]
        assert [entry.dimension for entry in items] == [8, 6, 4]
        assert all(entry.points for entry in items)
        assert {entry.evidence for entry in found.calibrations} == {"labels"}
        assert found.parity["samples"] == "the calibrating data"
        assert found.training == {}

    def test_judged_pairs(self, text_model: Path, tmp_path: Path) -> None:
        generator = np.random.default_rng(1)
        path = tmp_path / "pairs.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["first", "second", "same"])
            for number in range(120):
                one, other = generator.choice(WORDS, 2, replace=False)
                same = number % 2 == 0
                tail = " ".join(generator.choice(["is", "my", "why", "the"], 3))
                second = f"{one if same else other} {one if same else other} {tail} {number}"
                writer.writerow([f"{one} {one} {number}", second, int(same)])
        found, _ = run(text_model, tmp_path / "t.onnx", Measure(pairs=path))
        assert {entry.evidence for entry in found.calibrations} == {"pairs"}

    def test_a_file_of_texts(self, text_model: Path, tmp_path: Path) -> None:
        (tmp_path / "lines.txt").write_text("where is my card\n\nwhy\n")
        found, _ = run(text_model, tmp_path / "t.onnx", Measure(samples=tmp_path / "lines.txt"))
        assert found.parity["samples"] == "given"

    def test_a_folder_of_pictures(self, tmp_path: Path) -> None:
        onnx.save(picture_graph(), tmp_path / "any.onnx")
        folder = tmp_path / "pictures"
        folder.mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
        found, _ = run(tmp_path / "any.onnx", tmp_path / "t.onnx", Measure(samples=folder))
        assert (found.parity["samples"], found.modality) == ("given", "image")

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_arrays(self, vectors: Path, tmp_path: Path, suffix: str) -> None:
        rows = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
        path = tmp_path / f"rows.{suffix}"
        if suffix == "npy":
            np.save(path, rows)
        else:
            np.savez(path, vectors=rows)
        found, _ = run(vectors, tmp_path / "t.onnx", Measure(samples=path))
        assert (found.parity["samples"], found.modality) == ("given", "tensor")

    def test_samples_of_another_kind_are_refused(self, vectors: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "rows.npy", np.zeros((3, 7), np.float32))
        with pytest.raises(
            DataError, match=r"float32 \[3, 7\]; the model takes float32 \['n', 6\]"
        ):
            run(vectors, tmp_path / "t.onnx", Measure(samples=tmp_path / "rows.npy"))
        (tmp_path / "blank.txt").write_text("\n \n")
        model = save_onnx_folder(tmp_path / "model", text_graph())
        with pytest.raises(DataError, match="holds no texts"):
            run(model, tmp_path / "t.onnx", Measure(samples=tmp_path / "blank.txt"))
        onnx.save(picture_graph(), tmp_path / "pixels.onnx")
        with pytest.raises(DataError, match="holds no pictures"):
            run(tmp_path / "pixels.onnx", tmp_path / "t.onnx", Measure(samples=model))


class TestKinds:
    """Which module a path is given to; each is tested on its own."""

    def kind(self, path: Path) -> object:
        made = importer.read_model(path, Measure(), Settings(), Answers())
        return made.origin["kind"], type(made.contract).__name__

    def test_graphs(self, text_model: Path, vectors: Path, tmp_path: Path) -> None:
        assert self.kind(text_model) == ("onnx folder", "TextInput")
        assert self.kind(vectors) == ("onnx", "TensorInput")
        onnx.save(picture_graph(), tmp_path / "pixels.onnx")
        assert self.kind(tmp_path / "pixels.onnx") == ("onnx", "ImageInput")

    @pytest.mark.long
    def test_a_folder_of_sentence_transformers(
        self, sentence_folder: SentenceFolder, tmp_path: Path
    ) -> None:
        found, _ = run(sentence_folder(), tmp_path / "t.onnx")
        assert (found.origin["kind"], found.modality) == ("sentence-transformers", "text")
        assert found.origin["texts_tokenized_alike"] > 20
        assert found.parity["source"].startswith("torch ")
        assert "model.safetensors" in found.origin["files"]

    def test_a_vision_folder(self, tmp_path: Path) -> None:
        assert self.kind(save_vit(tmp_path / "vit")) == ("transformers", "ImageInput")

    def test_torch_weights_go_before_a_graph_beside_them(self, text_model: Path) -> None:
        (text_model / "model.safetensors").write_bytes(b"no tensors")
        # No encoder is loaded from a damaged file: the sentence tells that it was tried.
        with pytest.raises(DataError, match=r"the encoder in .* cannot be loaded"):
            self.kind(text_model)

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            self.kind(tmp_path / "none")

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        write_json(tmp_path / "notes.json", {})
        with pytest.raises(DataError, match=r"no model that is known: .*give the folder that"):
            self.kind(tmp_path)

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "any.onnx").write_text("hello")
        with pytest.raises(ManifestError, match="not an ONNX"):
            self.kind(tmp_path / "any.onnx")


def test_a_batch_that_stands_in_the_graph_fails_the_gate(tmp_path: Path) -> None:
    onnx.save(picture_graph(batch=1, reshape=True), tmp_path / "any.onnx")
    with pytest.raises(GateFailed, match="nothing was written"):
        run(tmp_path / "any.onnx", tmp_path / "t.onnx", open_batch=True)
    assert not (tmp_path / "t.onnx").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    model = save_onnx_folder(tmp_path / "model", text_graph(vocabulary=60))
    with pytest.raises(ManifestError, match=r"largest id is \d+, and the graph cannot look"):
        run(model, tmp_path / "t.onnx")
    assert not (tmp_path / "t.onnx").exists()


def test_above_two_gigabytes_is_refused(text_model: Path, tmp_path: Path) -> None:
    (text_model / "model.safetensors").touch()
    os.truncate(text_model / "model.safetensors", 2**31)
    with pytest.raises(ManifestError, match="above the 2 GB"):
        run(text_model, tmp_path / "t.onnx")


def test_the_twin_says_where_it_is_from_but_not_on_which_machine(
    text_model: Path, tmp_path: Path
) -> None:
    save_modules(text_model, "Transformer", "Pooling")
    save_pooling(text_model, "max_tokens")
    write_json(
        text_model / "config_sentence_transformers.json",
        {"prompts": {"query": "why "}, "default_prompt_name": "query"},
    )
    out = tmp_path / "t.onnx"
    found, _ = run(text_model, out, prompts={"passage": "the "}, metric=Metric.EUCLIDEAN)
    assert found.origin["pooling"] == ["max"]
    assert found.origin["producer"] == "elsewhere"
    assert set(found.origin["files"]) == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.onnx",
        "modules.json",
        "tokenizer.json",
    }
    assert isinstance(found.input, TextInput)
    assert found.input.prompts == {"query": "why ", "passage": "the "}
    assert found.input.default_prompt == "query"
    assert found.metric is Metric.EUCLIDEAN
    assert str(tmp_path).encode() not in out.read_bytes()
    content = out.read_bytes()
    run(text_model, out, prompts={"passage": "the "}, metric=Metric.EUCLIDEAN)
    assert out.read_bytes() == content


def test_answers_are_told_even_where_the_import_fails(tmp_path: Path) -> None:
    onnx.save(picture_graph(pooled=False), tmp_path / "any.onnx")
    told: list[str] = []
    with pytest.raises(ConfigError, match="a vector per place"):
        import_model(
            tmp_path / "any.onnx",
            tmp_path / "t.onnx",
            tell=lambda answers: told.extend(answer.question for answer in answers),
        )
    assert {"modality", "size", "mean"} <= set(told)


def test_flags_are_checked_before_any_work(text_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.onnx"
    for name, sentence in (("a b", "name is 'a b'"), ("", "name is ''")):
        with pytest.raises(ConfigError, match=sentence):
            import_model(text_model, out, name=name)
    with pytest.raises(ConfigError, match="there is no folder"):
        import_model(text_model, tmp_path / "none" / "t.onnx")
    with pytest.raises(ConfigError, match="--data and --pairs both set thresholds"):
        import_model(text_model, out, measure=Measure(data=out, pairs=out))
    with pytest.raises(ConfigError, match="--modality is for an ONNX file alone"):
        import_model(text_model, out, settings=Settings(modality="text"))


def test_shards_of_weights_are_found(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").touch()
    found = [file.name for file in weight_files(tmp_path)]
    assert found == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
