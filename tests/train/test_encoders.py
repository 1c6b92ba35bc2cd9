"""Encoders of transformers from a folder: whole, or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from twinserve.errors import ConfigError, DataError
from twinserve.train import encoders
from twinserve.train.encoders import Dense

IDS = torch.tensor([[2, 9, 4, 3], [2, 7, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

BERT = BertConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
)


def save(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    assert callable(model.save_pretrained)
    model.save_pretrained(folder)
    return model.eval()


@torch.inference_mode()
def test_a_text_encoder_gives_the_library_s_states(tmp_path: Path) -> None:
    model = save(BertModel(BERT), tmp_path)
    encoder = encoders.load_text(tmp_path)
    expected = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(encoder(IDS, MASK), expected)
    assert (encoder.width, encoder.vocabulary, encoders.positions(tmp_path)) == (16, 20, 12)
    assert not encoder.training
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    save(BertModel(BERT).half(), tmp_path)
    assert {value.dtype for value in encoders.load_text(tmp_path).parameters()} == {torch.float32}


@torch.inference_mode()
def test_the_encoder_of_a_model_with_a_head_is_found(tmp_path: Path) -> None:
    model = save(BertForMaskedLM(BERT), tmp_path)
    expected = model.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(encoders.load_text(tmp_path)(IDS, MASK), expected)


@torch.inference_mode()
def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, use_cache=False
    )
    model = save(T5EncoderModel(config), tmp_path)
    encoder = encoders.load_text(tmp_path)
    expected = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(encoder(IDS, MASK), expected)
    assert encoder.width == 16


def test_an_encoder_decoder_without_a_known_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    with pytest.raises(ConfigError, match=r"bart encodes and decodes.*known ones are t5"):
        encoders.load_text(tmp_path)


def test_code_that_lies_in_the_folder_is_not_run_and_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {"AutoConfig": "code.C", "AutoModel": "code.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": code}))
    script = f"from pathlib import Path\nPath({str(tmp_path)!r}, 'ran').touch()\n"
    (tmp_path / "code.py").write_text(script)
    answer = io.StringIO("y\n")  # to the library's question whether to run it
    monkeypatch.setattr("sys.stdin", answer)
    with pytest.raises(DataError, match="without code of the model's own"):
        encoders.load_text(tmp_path)
    assert answer.tell() == 0
    assert not (tmp_path / "ran").exists()


class TestWeights:
    def test_one_that_is_missing_is_refused_rather_than_drawn(self, tmp_path: Path) -> None:
        save(BertModel(BERT), tmp_path)
        kept = load_file(tmp_path / "model.safetensors")
        del kept["embeddings.LayerNorm.weight"]
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(DataError, match=r"lack 1 .*embeddings\.LayerNorm\.weight; they would"):
            encoders.load_text(tmp_path)

    def test_one_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        save(BertModel(BERT), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 30}))
        with pytest.raises(DataError):
            encoders.load_text(tmp_path)

    def test_a_pooler_that_nothing_passes_through_may_be_missing(self, tmp_path: Path) -> None:
        save(BertModel(BERT, add_pooling_layer=False), tmp_path)
        assert encoders.load_text(tmp_path).width == 16

    def test_damaged_tensors_are_told(self, tmp_path: Path) -> None:
        for name in ("t.safetensors", "t.bin"):
            (tmp_path / name).write_bytes(b"nothing of the kind")
            with pytest.raises(DataError, match=r"t\.\w+ cannot be read .*copy them again"):
                encoders.load_tensors(tmp_path / name)

    def test_a_pickle_of_anything_but_tensors_is_not_loaded(self, tmp_path: Path) -> None:
        torch.save({"a": Path("x")}, tmp_path / "t.bin")
        with pytest.raises(DataError, match="cannot be read"):
            encoders.load_tensors(tmp_path / "t.bin")
        torch.save({"a": torch.ones(2)}, tmp_path / "t.bin")
        assert torch.equal(encoders.load_tensors(tmp_path / "t.bin")["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "t5"}, None),
    ],
)
def test_places_are_counted_from_behind_the_padding_where_the_encoder_does(
    tmp_path: Path, config: dict[str, object], places: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert encoders.positions(tmp_path) == places


class TestPictures:
    VIT = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
    )

    @torch.inference_mode()
    def test_each_pooling_takes_its_part_of_the_output(self, tmp_path: Path) -> None:
        output = save(ViTModel(self.VIT), tmp_path)(pixel_values=PIXELS)
        states = output.last_hidden_state
        for pooling, expected in (
            ("cls", states[:, 0]),
            ("mean", states.mean(dim=1)),
            ("pooler", output.pooler_output),
        ):
            torch.testing.assert_close(encoders.load_image(tmp_path, pooling)(PIXELS), expected)
        assert encoders.image_pooling_guess(tmp_path) == ("cls", "vit")

    @torch.inference_mode()
    def test_the_centre_is_cut_out(self, tmp_path: Path) -> None:
        model = save(ViTModel(self.VIT), tmp_path)
        encoder = encoders.load_image(tmp_path, "cls", (16, 16))
        larger = torch.nn.functional.pad(PIXELS, (2, 3, 4, 4), value=7.0)  # 24 x 21
        expected = model(pixel_values=PIXELS).last_hidden_state[:, 0]
        torch.testing.assert_close(encoder(larger), expected)

    @torch.inference_mode()
    def test_a_resnet_s_places_are_pooled(self, tmp_path: Path) -> None:
        config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
        output = save(ResNetModel(config), tmp_path)(pixel_values=PIXELS)
        pooled = encoders.load_image(tmp_path, "pooler")(PIXELS)
        torch.testing.assert_close(pooled, output.pooler_output.flatten(1))
        mean = encoders.load_image(tmp_path, "mean")(PIXELS)
        torch.testing.assert_close(mean, output.last_hidden_state.mean(dim=(2, 3)))
        assert encoders.image_pooling_guess(tmp_path) == ("pooler", "resnet")


def test_layers_behind_pooling_are_those_given() -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    vectors = torch.randn(5, 4)
    found = encoders.head([Dense(weight, bias, "Tanh"), None], cut=2)(vectors)
    tanh = torch.tanh(vectors @ weight.T + bias)
    torch.testing.assert_close(found, torch.nn.functional.normalize(tanh)[:, :2])
    found = encoders.head([Dense(weight, None, "Identity")])(vectors)
    torch.testing.assert_close(found, vectors @ weight.T)
