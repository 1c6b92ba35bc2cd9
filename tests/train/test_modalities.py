"""Texts, vectors and deeper networks go through the one training, and their runs open again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train import drawings, questions
from twinserve.errors import ConfigError, DataError
from twinserve.manifest import TensorInput, TextInput
from twinserve.tokens import Tokenizer, digest
from twinserve.train import checkpoint
from twinserve.train.augment import drop_tokens
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig
from twinserve.train.evaluate import embed
from twinserve.train.loop import train
from twinserve.train.material import prepare
from twinserve.train.resnet import ResNet
from twinserve.train.twins import ImageTwin, TensorTwin, TextTwin

QUICK = TrainConfig(
    dimension=8,
    classes_per_batch=6,
    max_steps=30,
    evaluate_every=15,
    one_shot_ways=3,
    one_shot_trials=200,
    calibrate_fraction=0.3,
    report_fraction=0.3,
    learning_rate=3e-3,
)


def quick(data: Path, out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(QUICK, data=str(data), out=str(out), **changes)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "questions.csv"
    return questions.write_csv(path, [*questions.rows()], ("question", "topic"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes in six coordinates, under the noise of 30 others that say nothing."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 8)
    rows = 3.0 * generator.standard_normal((320, 36))
    rows[:, :6] = generator.standard_normal((40, 6))[labels] + 0.2 * rows[:, :6] / 3.0
    path = tmp_path_factory.mktemp("vectors") / "vectors.npz"
    np.savez(path, vectors=rows.astype(np.float32), labels=labels)
    return path


@pytest.fixture(scope="module")
def of_texts(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = quick(texts, tmp_path_factory.mktemp("run"), twin="words", label_column="topic")
    return train(config, progress=False)


@pytest.fixture(scope="module")
def of_vectors(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = quick(
        vectors, tmp_path_factory.mktemp("run"), twin="mlp", max_steps=150, classes_per_batch=16
    )
    return train(config, progress=False)


def test_texts_train_into_a_twin_that_carries_its_tokenizer(of_texts: Run) -> None:
    twin = of_texts.twin
    assert isinstance(twin, TextTwin)
    assert isinstance(twin.contract, TextInput)
    assert twin.contract.tokenizer_digest == digest(twin.tokenizer)
    report = json.loads((of_texts.folder / "report.json").read_text())
    assert 0.0 <= report["bag_of_words_one_shot"] <= 1.0
    part = of_texts.part("report")
    assert part.class_names == of_texts.splits.report
    assert part.names[0].startswith(("What about", "is there"))
    again = checkpoint.load(of_texts.folder)
    assert again.twin.contract == twin.contract
    assert again.twin.tokenizer == twin.tokenizer
    assert np.array_equal(embed(again.twin, part.rows), embed(twin, part.rows))


def test_the_tokenizer_knows_the_words_of_the_training_classes_alone(of_texts: Run) -> None:
    assert of_texts.twin.tokenizer is not None
    assert isinstance(of_texts.twin.contract, TextInput)
    tokenizer = Tokenizer(of_texts.twin.tokenizer, of_texts.twin.contract)
    whole = {
        part: np.mean(
            [
                len(tokenizer.encode(word).ids) == 1
                for topic in getattr(of_texts.splits, part)
                for word in questions.TOPICS[topic]
            ]
        )
        for part in ("train", "calibrate", "report")
    }
    assert whole["train"] == 1.0
    assert whole["calibrate"] < 0.5
    assert whole["report"] < 0.5


def test_training_brings_wordings_of_a_known_topic_together(of_texts: Run) -> None:
    with open(of_texts.folder / "log.csv") as file:
        _, first, last = (line.split(",") for line in file)
    assert float(last[1]) < 0.7 * float(first[1])


def test_word_vectors_from_a_file_are_what_training_begins_with(
    texts: Path, tmp_path: Path
) -> None:
    path = questions.write_vectors(tmp_path / "vectors.txt")
    config = quick(
        *(texts, tmp_path / "run"),
        twin="words",
        label_column="topic",
        weights=str(path),
        word_dimension=8,
        max_steps=1,
    )
    run = train(config, progress=False)
    # Topics that the training never saw are told apart by the file's vectors.
    assert run.results["report"]["one_shot"]["accuracy"] > 0.9
    path.unlink()  # the run holds all of it
    assert len(embed(checkpoint.load(tmp_path / "run").twin, run.part("report").rows)) > 0
    questions.write_vectors(path)
    with pytest.raises(ConfigError, match=r"has 8 coordinates; set word_dimension=8"):
        train(dataclasses.replace(config, word_dimension=9), progress=False)


def test_vectors_train_into_a_twin_that_finds_what_matters_in_them(of_vectors: Run) -> None:
    assert isinstance(of_vectors.twin, TensorTwin)
    assert of_vectors.twin.contract == TensorInput((36,))
    report = of_vectors.results["report"]
    assert report["one_shot"]["accuracy"] > of_vectors.results["vectors_one_shot"] + 0.1
    part = of_vectors.part("calibrate")
    again = checkpoint.load(of_vectors.folder).twin
    assert np.array_equal(embed(again, part.rows), embed(of_vectors.twin, part.rows))


def test_equal_seeds_give_equal_twins_of_texts_and_vectors(
    texts: Path, vectors: Path, tmp_path: Path
) -> None:
    for data, twin, column in ((texts, "words", "topic"), (vectors, "mlp", "")):
        states = []
        for index, seed in enumerate((1, 1, 2)):
            config = quick(
                *(data, tmp_path / f"{twin}{index}"),
                twin=twin,
                label_column=column,
                max_steps=4,
                seed=seed,
            )
            state = train(config, progress=False).twin.state_dict()
            states.append(torch.cat([t.flatten().float() for t in state.values()]))
        assert torch.equal(states[0], states[1])
        assert states[0].shape != states[2].shape or not torch.equal(states[0], states[2])


def test_texts_that_changed_since_the_training_are_refused(texts: Path, tmp_path: Path) -> None:
    data = tmp_path / "q.csv"
    data.write_bytes(texts.read_bytes())
    run = train(
        quick(data, tmp_path / "run", twin="words", label_column="topic", max_steps=1),
        progress=False,
    )
    data.write_text(data.read_text().replace("please help", "please do help"))
    with pytest.raises(DataError, match="has changed since"):
        run.part("train")


def test_a_resnet_trains_from_a_weights_file_and_its_run_needs_it_no_more(tmp_path: Path) -> None:
    content = drawings.files(groups=1, classes=7, items=3)
    data = drawings.write_folder(tmp_path / "data", content)
    torch.manual_seed(3)
    published = ResNet(18, channels=3, outputs=1000).state_dict()
    weights = tmp_path / "resnet18.pth"
    torch.save(published, weights)
    config = quick(
        *(data, tmp_path / "run"),
        twin="resnet18",
        weights=str(weights),
        color_order="RGB",
        image_size=32,
        mean_std="imagenet",
        max_steps=1,
        learning_rate=1e-12,
        one_shot_ways=2,
    )
    run = train(config, progress=False)
    weights.unlink()
    assert isinstance(run.twin, ImageTwin)
    assert run.twin.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert run.twin.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    state = checkpoint.load(tmp_path / "run").twin.state_dict()
    torch.testing.assert_close(state["body.conv1.weight"], published["conv1.weight"])
    torch.testing.assert_close(
        state["body.layer4.1.conv2.weight"], published["layer4.1.conv2.weight"]
    )
    assert state["body.fc.weight"].shape == (8, 512)


def test_a_twin_that_does_not_take_the_data_is_refused_with_those_that_do(
    texts: Path, vectors: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"twin is 'conv4', .*questions\.csv; set twin=words"):
        prepare(quick(texts, tmp_path))
    with pytest.raises(ConfigError, match=r"twin is 'words', .*vectors\.npz; set twin=mlp"):
        prepare(quick(vectors, tmp_path, twin="words"))
    with pytest.raises(ConfigError, match="twin=conv4 or twin=conv5 or twin=resnet18"):
        prepare(quick(tmp_path, tmp_path, twin="mlp"))


def test_one_class_alone_is_refused_in_every_modality(tmp_path: Path) -> None:
    drawn = drawings.write_folder(
        tmp_path / "drawn", {f"a/{i}.png": drawings.draw(0, i) for i in range(3)}
    )
    asked = questions.write_csv(tmp_path / "q.csv", [("hi", "a"), ("ho", "a")])
    np.savez(tmp_path / "v.npz", vectors=np.eye(3, dtype=np.float32), labels=[1, 1, 1])
    for data, twin in ((drawn, "conv4"), (asked, "words"), (tmp_path / "v.npz", "mlp")):
        with pytest.raises(DataError, match="one class alone"):
            prepare(quick(data, tmp_path, twin=twin))


def test_a_checkpoint_of_the_first_format_still_opens(tmp_path: Path) -> None:
    data = drawings.write_folder(tmp_path / "data", drawings.files(groups=1, classes=7, items=3))
    run = train(quick(data, tmp_path / "run", max_steps=1, width=8), progress=False)
    path = run.folder / checkpoint.FILE
    document = torch.load(path, weights_only=True)
    for key in ("contract", "modality", "tokenizer"):
        del document[key]
    # What the first format's configs knew nothing of.
    for key in ("weights", "stem", "hidden", "vocabulary", "word_dimension", "mean_std"):
        del document["config"][key]
    torch.save({**document, "format": 1}, path)
    old = checkpoint.load(run.folder)
    assert old.twin.contract == run.twin.contract
    part = run.part("report")
    assert old.part("report").digest == part.digest
    assert np.array_equal(embed(old.twin, part.rows), embed(run.twin, part.rows))


def test_dropped_tokens_leave_at_least_one_and_keep_their_order() -> None:
    rows = [np.arange(length) for length in (1, 2, 10, 1000)]
    kept = drop_tokens(rows, 0.5, torch.Generator().manual_seed(0))
    assert all(len(row) >= 1 and (np.diff(row) > 0).all() for row in kept)
    assert 420 < len(kept[3]) < 580
    assert drop_tokens(rows, 0.0, torch.Generator()) is rows
