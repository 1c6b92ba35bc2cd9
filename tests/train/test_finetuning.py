"""Encoders to be trained on: what the folder says, what is frozen, how fast each layer learns."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel, ResNetConfig, ResNetModel

from tests.export.imports.conftest import (
    HIDDEN,
    PLACES,
    bert,
    save_dense,
    save_encoder,
    save_modules,
    save_pooling,
    save_vit,
    write_json,
)
from tests.export.text_twins import SENTENCES
from twinserve.errors import ConfigError, DataError
from twinserve.feed import Rows
from twinserve.tokens import Tokenizer
from twinserve.train import checkpoint, finetuning
from twinserve.train.augment import Augmented
from twinserve.train.build import begin, build
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batch, Labelled, Splits
from twinserve.train.evaluate import embed, tensors
from twinserve.train.finetuning import Projection, picture_input, text_input
from twinserve.train.material import image_contract
from twinserve.train.objective import Objective
from twinserve.train.optimizer import optimizer_of, schedule_of
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.pretrained.text import read_twin
from twinserve.train.twins import ImageTwin, TextTwin, Twin

TEXTS = (*SENTENCES, "cash", "a")
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def config(folder: Path, **settings: object) -> TrainConfig:
    return TrainConfig(twin="text_encoder", weights=str(folder), **settings)  # type: ignore[arg-type]


def made(folder: Path, **settings: object) -> tuple[TextTwin, TrainConfig]:
    asked = config(folder, **settings)
    contract, tokenizer = text_input(asked, TEXTS)
    torch.manual_seed(0)
    twin = build(asked, contract, tokenizer)
    assert isinstance(twin, TextTwin)
    return twin, asked


def rows_of(twin: TextTwin) -> Rows:
    tokenizer = Tokenizer(twin.tokenizer, twin.contract)
    return [tokenizer.encode(text).ids for text in TEXTS]


def step(twin: TextTwin, asked: TrainConfig, steps: int = 1) -> None:
    """Train on all texts at once, as the loop does."""
    objective = Objective(asked)
    optimizer = optimizer_of(twin, objective, asked)
    torch.manual_seed(1)
    for _ in range(steps):
        embeddings = twin.train()(*tensors(rows_of(twin), twin.contract))
        loss, _ = objective(embeddings, LABELS, torch.Generator())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    twin.eval()


def moved(twin: TextTwin, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name for name, value in twin.state_dict().items() if not torch.equal(value, before[name])
    }


def copied(twin: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in twin.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentence-transformers saves it, with a Dense behind the pooling."""
    folder = save_encoder(tmp_path_factory.mktemp("model"))
    save_modules(folder, "Transformer", "Pooling", "Dense", "Normalize")
    save_pooling(folder, "cls_token", "mean_tokens")
    torch.manual_seed(1)
    weight, bias = torch.randn(12, 2 * HIDDEN), torch.randn(12)
    save_dense(folder / "2_Dense", weight, bias, "torch.nn.modules.activation.Tanh")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "please "}})
    return folder


def test_before_its_first_step_the_twin_is_the_model_that_an_import_makes(folder: Path) -> None:
    twin, _ = made(folder)
    imported, _ = read_twin(folder, TEXTS, Settings(), Answers())
    assert twin.contract == imported.contract
    assert (twin.dimension, twin.contract.max_tokens, twin.variant) == (12, 24, imported.variant)
    np.testing.assert_array_equal(embed(twin, rows_of(twin)), embed(imported, rows_of(twin)))


def test_the_shorter_of_max_tokens_and_the_folder_s_limit_cuts(folder: Path) -> None:
    assert text_input(config(folder, max_tokens=9), TEXTS)[0].max_tokens == 9


def test_a_pooling_and_a_projection_may_be_asked_for(folder: Path, tmp_path: Path) -> None:
    plain = save_encoder(tmp_path / "plain")
    twin, _ = made(plain, pooling="max", dimension=6)
    assert (twin.pooling, twin.dimension) == (("max",), 6)
    twin, _ = made(folder, dimension=6)
    assert isinstance(twin.head[-1], Projection)  # type: ignore[index]
    assert embed(twin, rows_of(twin)).shape == (len(TEXTS), 6)


def test_frozen_layers_do_not_move_and_drop_nothing(folder: Path) -> None:
    twin, asked = made(folder, freeze="1", learning_rate=1e-2)
    before = copied(twin)
    step(twin, asked)
    names = moved(twin, before)
    assert any(".layer.1." in name for name in names)
    assert any(name.startswith("head.") for name in names)
    assert not [name for name in names if "embeddings" in name or ".layer.0." in name]
    twin.train()
    modes = {name: module.training for name, module in twin.encoder.named_modules()}
    assert not modes["model.embeddings.dropout"]
    assert not modes["model.encoder.layer.0.output.dropout"]
    assert modes["model.encoder.layer.1.output.dropout"]


def test_with_all_of_the_encoder_frozen_what_lies_behind_it_learns(folder: Path) -> None:
    twin, asked = made(folder, freeze="encoder", dimension=6)
    before = copied(twin)
    step(twin, asked)
    names = moved(twin, before)
    assert names
    assert all(name.startswith("head.") for name in names)


def test_a_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    save_vit(tmp_path)  # for its preprocessor_config.json
    torch.manual_seed(0)
    ResNetModel(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ).save_pretrained(tmp_path)
    asked = TrainConfig(twin="image_encoder", weights=str(tmp_path), freeze="1")
    twin = build(asked, picture_input(asked))
    before = copied(twin)
    twin.train()(torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8))
    counted = {
        name for name, value in twin.state_dict().items() if not torch.equal(value, before[name])
    }
    assert counted
    assert all("stages.1." in name for name in counted)


def test_a_layer_learns_slower_than_the_one_above(folder: Path) -> None:
    twin, asked = made(folder, dimension=6, layer_decay=0.5, learning_rate=1e-3, weight_decay=0.01)
    optimizer = optimizer_of(twin, Objective(asked), asked)
    groups = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: groups[id(parameter)] for name, parameter in twin.named_parameters()}
    layer = "encoder.model.encoder.layer"
    assert found["encoder.model.embeddings.word_embeddings.weight"] == (0.125e-3, 0.01)
    assert found[f"{layer}.0.output.dense.weight"] == (0.25e-3, 0.01)
    assert found[f"{layer}.1.output.dense.weight"] == (0.5e-3, 0.01)
    assert found[f"{layer}.1.output.LayerNorm.weight"] == (0.5e-3, 0.0)
    assert found["head.0.weight"] == (1e-3, 0.01)
    # The projection begins at random.
    assert found["head.2.weight"] == (asked.head_learning_rate, 0.01)


def test_the_rate_rises_over_the_warm_up_and_falls_along_a_cosine(folder: Path) -> None:
    asked = config(folder, learning_rate=1.0, warmup_steps=3, max_steps=7)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = schedule_of(optimizer, asked)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [(1 + np.cos(np.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, *cosine], atol=1e-12)


def test_after_training_a_padded_text_still_gives_the_vector_that_it_gives_alone(
    folder: Path,
) -> None:
    twin, asked = made(folder, learning_rate=1e-2)
    before = embed(twin, rows_of(twin))
    step(twin, asked, 2)
    rows = rows_of(twin)
    alone = np.concatenate([embed(twin, [row]) for row in rows])
    assert np.abs(alone - before).max() > 1e-3
    np.testing.assert_allclose(embed(twin, rows), alone, atol=2e-6)


def test_a_checkpoint_needs_no_folder_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model")
    twin, asked = made(folder, freeze="1", dimension=6, matryoshka=(4, 2))
    step(twin, asked)
    checkpoint.save(
        tmp_path, twin=twin, config=asked, splits=Splits((), (), ()), results={}, data_digest="",
        step=1,
    )  # fmt: skip
    folder.rename(tmp_path / "elsewhere")
    loaded = checkpoint.load(tmp_path).twin
    assert isinstance(loaded, TextTwin)
    assert (loaded.contract, loaded.truncations) == (twin.contract, (4, 2))
    np.testing.assert_array_equal(embed(loaded, rows_of(twin)), embed(twin, rows_of(twin)))
    for either in (twin, loaded):
        step(either, asked)
    assert not moved(loaded, copied(twin))


def test_tokens_are_not_left_out_since_an_encoder_has_dropout_of_its_own(folder: Path) -> None:
    twin, asked = made(folder, word_dropout=0.9)
    batch = Batch(np.arange(len(TEXTS)), np.zeros(8, np.int64), np.arange(8))
    rows = rows_of(twin)
    given = Augmented(rows, twin.contract, asked)(batch, torch.Generator())
    for one, other in zip(given, tensors(rows, twin.contract), strict=True):
        assert torch.equal(one, other)


def test_a_model_is_found_in_the_cache_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--somebody--small"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = TrainConfig(twin="text_encoder", weights="somebody/small")
    contract, tokenizer = text_input(named, TEXTS)
    twin = build(named, contract, tokenizer)
    expected, _ = made(folder)
    np.testing.assert_array_equal(
        embed(twin, rows_of(expected)), embed(expected, rows_of(expected))
    )
    assert twin.blueprint is not None
    origin = twin.blueprint["origin"]
    assert (origin["name"], origin["revision"]) == ("somebody/small", revision)
    assert "model.safetensors" in origin["files"]


def test_an_unknown_architecture_is_written_as_onnx_before_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, asked = made(folder)
    traced: list[Twin] = []
    monkeypatch.setattr(finetuning, "trace", traced.append)  # which takes seconds
    nothing = Labelled([], np.zeros(0, np.int64), (), ())
    begin(twin, asked, nothing)
    assert not traced
    twin.encoder.model = type("RareModel", (BertModel,), {})(bert().config)
    begin(twin, asked, nothing)
    assert traced == [twin]


class TestPictures:
    def test_a_vision_encoder_brings_its_contract_and_comes_back_from_a_checkpoint(
        self, tmp_path: Path
    ) -> None:
        folder = save_vit(tmp_path / "model")
        asked = TrainConfig(twin="image_encoder", weights=str(folder), dimension=5, freeze="0")
        contract = image_contract(asked)
        assert (contract.height, contract.color_order) == (16, "RGB")
        twin = build(asked, contract)
        assert isinstance(twin, ImageTwin)
        checkpoint.save(
            tmp_path, twin=twin, config=asked, splits=Splits((), (), ()), results={},
            data_digest="", step=0,
        )  # fmt: skip
        folder.rename(tmp_path / "elsewhere")
        pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
        loaded = checkpoint.load(tmp_path).twin
        np.testing.assert_array_equal(embed(loaded, pixels), embed(twin, pixels))
        assert embed(twin, pixels).shape == (3, 5)

    def test_each_kind_of_folder_names_the_other_twin(self, tmp_path: Path, folder: Path) -> None:
        vit = save_vit(tmp_path)
        with pytest.raises(ConfigError, match="set twin=image_encoder"):
            text_input(config(vit), TEXTS)
        with pytest.raises(ConfigError, match="set twin=text_encoder"):
            picture_input(TrainConfig(twin="image_encoder", weights=str(folder)))


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"dimension": 13}, "dimension is 13, and the encoder gives 12"),
            ({"freeze": "encoder", "pooling": "middle"}, "pooling is 'middle'"),
            ({"freeze": "3"}, "freeze is 3, and the encoder has 2 layers"),
            ({"matryoshka": (16,)}, "matryoshka names 16, and the embedding has 12"),
        ],
    )
    def test_settings_that_do_not_fit_the_folder(
        self, folder: Path, settings: dict[str, object], sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence):
            made(folder, **settings)

    def test_nothing_left_to_train(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"leaves nothing to train: set dimension below 32"):
            made(save_encoder(tmp_path), freeze="encoder")

    def test_settings_of_encoders_for_other_twins(self) -> None:
        for settings in ({"freeze": "1"}, {"pooling": "mean"}, {"layer_decay": 0.9}):
            with pytest.raises(ConfigError, match="text_encoder and image_encoder; twin is words"):
                TrainConfig(twin="words", **settings)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="weights is not set; name its folder"):
            TrainConfig(twin="text_encoder")
        with pytest.raises(ConfigError, match="freeze is 'half'"):
            config(Path("x"), freeze="half")

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"which is no folder; name one that"):
            text_input(config(tmp_path / "absent"), TEXTS)

    def test_a_name_that_is_not_in_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        asked = TrainConfig(twin="text_encoder", weights="nobody/absent")
        with pytest.raises(ConfigError, match=r"run `hf download nobody/absent` where there is"):
            text_input(asked, TEXTS)

    def test_a_folder_without_weights(self, tmp_path: Path) -> None:
        folder = save_encoder(tmp_path)
        (folder / "model.safetensors").unlink()
        with pytest.raises(DataError, match=r"lacks config.json or the weights .*copy the model"):
            text_input(config(folder), TEXTS)

    def test_a_tokenizer_larger_than_the_vocabulary(self, tmp_path: Path) -> None:
        folder = save_encoder(tmp_path, bert(60))
        with pytest.raises(DataError, match=r"ids up to 90, and the encoder knows them up to 59"):
            made(folder)
        save_modules(folder, "Transformer", "Pooling", "Normalize")
        save_pooling(folder, "mean_tokens")
        with pytest.raises(DataError, match=r"ids up to 90, and the encoder knows them up to 59"):
            made(folder)

    def test_transformers_missing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"pip install 'twinserve\[train\]'"):
            text_input(config(folder), TEXTS)


def test_the_fixture_s_weights_are_what_is_trained(folder: Path) -> None:
    kept = load_file(folder / "model.safetensors")
    twin, _ = made(folder)
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(twin.encoder.model.get_parameter(name), kept[name])
    assert twin.encoder.model.get_parameter(name).requires_grad
    assert twin.contract.max_tokens < PLACES
