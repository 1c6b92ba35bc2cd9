"""Text encoders with torch weights: what the folder says is what the twin does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.imports.conftest import (
    HIDDEN,
    PLACES,
    SentenceFolder,
    bert,
    save_dense,
    save_encoder,
    save_modules,
    save_pooling,
    write_json,
)
from tests.export.text_twins import SENTENCES, VOCABULARY, tokenizer_json
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export.imports.text_folder import import_folder
from twinserve.manifest import TextInput
from twinserve.tokens import Tokenizer
from twinserve.train.evaluate import embed
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.pretrained.text import read_twin
from twinserve.train.pretrained.tokenizer import as_the_library_cuts
from twinserve.train.twins import TextTwin

TEXTS = (*SENTENCES, "cash", "a")


def read(folder: Path, **flags: object) -> TextTwin:
    return read_twin(folder, TEXTS, Settings(**flags), Answers())[0]


def embeddings(twin: TextTwin, texts: tuple[str, ...] = TEXTS) -> np.ndarray:
    tokenizer = Tokenizer(twin.tokenizer, twin.contract)
    return embed(twin, [tokenizer.encode(text).ids for text in texts])


def states(text: str, most: int = 24) -> np.ndarray:
    """The encoder run by hand on one text alone: [length, HIDDEN]."""
    ids = Tokenizer(tokenizer_json(), read_contract(most)).encode(text).ids
    with torch.inference_mode():
        output = bert()(input_ids=torch.tensor(ids)[None])
    return output.last_hidden_state[0].numpy()


def read_contract(most: int) -> TextInput:
    return TextInput(max_tokens=most)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


BY_HAND = {
    "cls_token": lambda s: s[0],
    "max_tokens": lambda s: s.max(axis=0),
    "mean_tokens": lambda s: s.mean(axis=0),
    "mean_sqrt_len_tokens": lambda s: s.sum(axis=0) / np.sqrt(len(s)),
    "weightedmean_tokens": lambda s: np.average(s, axis=0, weights=np.arange(1, len(s) + 1)),
    "lasttoken": lambda s: s[-1],
}


@pytest.mark.parametrize("pooling", BY_HAND)
def test_each_pooling_gives_what_it_gives_by_hand(
    sentence_folder: SentenceFolder, pooling: str
) -> None:
    twin = read(sentence_folder(pooling, normalize=False))
    expected = np.stack([BY_HAND[pooling](states(text)) for text in TEXTS])
    np.testing.assert_allclose(embeddings(twin), expected, atol=2e-6)
    assert not twin.normalized


def test_several_poolings_stand_side_by_side_in_the_library_s_order(
    sentence_folder: SentenceFolder,
) -> None:
    names = ["lasttoken", "mean_tokens", "cls_token", "max_tokens"]
    twin = read(sentence_folder(*names, normalize=False))
    order = ["cls_token", "max_tokens", "mean_tokens", "lasttoken"]
    expected = [np.concatenate([BY_HAND[name](states(text)) for name in order]) for text in TEXTS]
    assert twin.dimension == 4 * HIDDEN
    np.testing.assert_allclose(embeddings(twin), expected, atol=2e-6)


def test_layers_behind_pooling_are_kept(sentence_folder: SentenceFolder) -> None:
    folder = sentence_folder()
    save_modules(folder, "Transformer", "Pooling", "Dense", "Dropout", "Normalize")
    torch.manual_seed(1)
    weight, bias = torch.randn(10, HIDDEN), torch.randn(10)
    save_dense(folder / "2_Dense", weight, bias, "torch.nn.modules.activation.Tanh")
    twin = read(folder)
    pooled = np.stack([states(text).mean(axis=0) for text in TEXTS])
    expected = unit(np.tanh(pooled @ weight.numpy().T + bias.numpy()))
    assert (twin.dimension, twin.normalized) == (10, True)
    np.testing.assert_allclose(embeddings(twin), expected, atol=2e-6)


def test_the_configuration_reaches_the_twin(sentence_folder: SentenceFolder) -> None:
    folder = sentence_folder()
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": "please ", "document": ""},
            "default_prompt_name": "query",
            "similarity_fn_name": "euclidean",
            "truncate_dim": 16,
            "matryoshka_dims": [16, 8, 4],
        },
    )
    twin = read(folder)
    assert twin.contract.max_tokens == 24
    assert twin.contract.prompts == {"query": "please ", "document": ""}
    assert twin.contract.default_prompt == "query"
    assert (twin.metric, twin.dimension, twin.truncations) == (Metric.EUCLIDEAN, 16, (8, 4))
    cut = np.stack([states(f"please {text}").mean(axis=0)[:16] for text in TEXTS])
    np.testing.assert_allclose(embeddings(twin), unit(cut), atol=2e-6)


def test_flags_go_before_files(sentence_folder: SentenceFolder) -> None:
    twin = read(
        sentence_folder(),
        metric=Metric.EUCLIDEAN,
        pooling=("cls",),
        normalize=False,
        max_tokens=9,
        truncations=(4, 8),
        prompts={"ask": "why "},
        default_prompt="ask",
    )
    assert (twin.metric, twin.pooling, twin.normalized) == (Metric.EUCLIDEAN, ("cls",), False)
    assert (twin.contract.max_tokens, twin.truncations) == (9, (8, 4))
    assert twin.contract.default_prompt == "ask"


def test_a_folder_without_modules_is_guessed_and_the_guess_is_told(tmp_path: Path) -> None:
    answers = Answers()
    twin, origin = read_twin(save_encoder(tmp_path / "m"), TEXTS, Settings(), answers)
    guesses = {answer.question: answer.taken for answer in answers.given if answer.guessed}
    assert guesses["pooling"] == "mean"
    assert guesses["unit length"] == "yes"
    assert twin.contract.max_tokens == PLACES
    assert origin["kind"] == "transformers"
    assert origin["texts_tokenized_alike"] == len(TEXTS)


def test_weights_in_a_pickle_give_the_same_twin(sentence_folder: SentenceFolder) -> None:
    folder = sentence_folder()
    expected = embeddings(read(folder))
    (folder / "model.safetensors").unlink()
    torch.save(bert().state_dict(), folder / "pytorch_model.bin")
    assert np.array_equal(embeddings(read(folder)), expected)


def test_a_pickle_that_runs_code_is_refused(sentence_folder: SentenceFolder) -> None:
    folder = sentence_folder()
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        read(folder)


def test_a_folder_with_only_a_vocabulary_is_converted(sentence_folder: SentenceFolder) -> None:
    folder = sentence_folder()
    vocabulary = json.loads(tokenizer_json())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    twin = read(folder)
    text = "why do i see a payment"
    expected = Tokenizer(tokenizer_json(), read_contract(24)).encode(text).ids
    assert Tokenizer(twin.tokenizer, twin.contract).encode(text).ids.tolist() == expected.tolist()


def test_texts_are_put_into_lower_case_where_the_folder_says_so(
    sentence_folder: SentenceFolder,
) -> None:
    folder = sentence_folder()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})
    twin = read(folder)
    upper = tuple(text.upper() for text in TEXTS)
    assert np.array_equal(embeddings(twin, upper), embeddings(twin))


def test_a_tokenizer_given_by_hand_is_taken_as_it_is(
    sentence_folder: SentenceFolder, tmp_path: Path
) -> None:
    other = json.loads(tokenizer_json())
    other["normalizer"] = {"type": "Replace", "pattern": {"String": "card"}, "content": "cash"}
    elsewhere = tmp_path / "other.json"
    elsewhere.write_text(json.dumps(other))
    assert read(sentence_folder(), tokenizer=elsewhere).tokenizer == elsewhere.read_text()


def test_the_library_s_own_tokenizer_is_taken_where_the_file_gives_other_ids(
    sentence_folder: SentenceFolder,
) -> None:
    folder = sentence_folder()
    contract = read_contract(PLACES)
    wrong = json.loads(tokenizer_json())
    wrong["normalizer"] = {"type": "Replace", "pattern": {"String": "card"}, "content": "cash"}
    taken, seen = as_the_library_cuts(folder, json.dumps(wrong), contract, list(TEXTS))
    assert seen == len(TEXTS)
    text = "where is my card"
    expected = Tokenizer(tokenizer_json(), contract).encode(text).ids
    assert Tokenizer(taken, contract).encode(text).ids.tolist() == expected.tolist()


class TestRefusals:
    def test_an_unknown_module(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        save_modules(folder, "Transformer", "Pooling", "WordWeights")
        with pytest.raises(ConfigError, match=r"WordWeights, which a twin cannot repeat.*Dense"):
            read(folder)

    def test_an_activation_that_could_be_any_code(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        save_modules(folder, "Transformer", "Pooling", "Dense")
        save_dense(folder / "2_Dense", torch.ones(4, HIDDEN), torch.ones(4), "os.system")
        with pytest.raises(ConfigError, match=r"'os\.system', which a twin cannot repeat"):
            read(folder)

    def test_pooling_that_leaves_the_prompt_out(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        save_pooling(folder, "mean_tokens", include_prompt=False)
        with pytest.raises(ConfigError, match="leaves the prompt's tokens out"):
            read(folder)

    def test_a_pooling_that_is_unknown(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        save_pooling(folder, "mean_tokens", "of_the_future")
        with pytest.raises(ConfigError, match="pooling_mode_of_the_future, which is unknown"):
            read(folder)

    def test_modules_that_lead_out_of_the_folder(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        listed = json.loads((folder / "modules.json").read_text())
        listed[1]["path"] = "../elsewhere"
        write_json(folder / "modules.json", listed)
        with pytest.raises(DataError, match="leads out of the model's folder"):
            read(folder)

    def test_a_similarity_that_no_metric_stands_for(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder(normalize=False)
        write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "dot"})
        with pytest.raises(ConfigError, match="'dot', which is no metric of twinserve"):
            read(folder)
        assert read(folder, metric=Metric.COSINE).metric is Metric.COSINE

    def test_a_tokenizer_larger_than_the_vocabulary(self, tmp_path: Path) -> None:
        folder = save_encoder(tmp_path / "model", bert(60))
        with pytest.raises(ManifestError, match=r"largest id is 90.*ends at id 59"):
            import_folder(folder, TEXTS, Settings(), Answers())

    def test_no_tokenizer(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        (folder / "tokenizer.json").unlink()
        with pytest.raises(DataError, match=r"no tokenizer\.json.*--tokenizer FILE"):
            read(folder)

    def test_weights_that_lack_a_layer(self, sentence_folder: SentenceFolder) -> None:
        folder = sentence_folder()
        kept = load_file(folder / "model.safetensors")
        del kept["encoder.layer.1.output.dense.weight"]
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(
            DataError, match=r"lack 1 of .*encoder\.layer\.1\.output\.dense\.weight"
        ):
            read(folder)

    def test_more_tokens_than_the_encoder_has_places(self, sentence_folder: SentenceFolder) -> None:
        with pytest.raises(ConfigError, match=f"places for {PLACES}"):
            read(sentence_folder(), max_tokens=PLACES + 1)

    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            ({"pooling": ("middle",)}, "pooling is 'middle'"),
            ({"truncations": (64,)}, "truncation 64 is outside 1 to 32"),
            ({"dimension": 33}, "--dimension is 33, and the embedding has 32"),
            ({"default_prompt": "x"}, "default prompt 'x' is unknown"),
        ],
    )
    def test_flags_that_do_not_fit(
        self, sentence_folder: SentenceFolder, flags: dict[str, object], sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence):
            read(sentence_folder(), **flags)


def test_vocabulary_of_the_fixtures_is_the_encoder_s() -> None:
    assert bert().get_input_embeddings().num_embeddings == VOCABULARY
