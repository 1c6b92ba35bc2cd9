"""Text graphs: what is put around them gives what numpy gives by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.export.imports.conftest import (
    PLACES,
    TABLE,
    graph_of,
    save_dense,
    save_modules,
    save_onnx_folder,
    save_pooling,
    text_graph,
    value,
)
from tests.export.text_twins import SENTENCES, tokenizer_json
from twinserve.distance import Embeddings, Metric
from twinserve.errors import ConfigError, DataError
from twinserve.export.imports import onnx_model
from twinserve.export.imports.source import Imported
from twinserve.export.session import GraphSession
from twinserve.tokens import Tokenizer
from twinserve.train.pretrained.settings import Answers, Settings

TEXTS = (*SENTENCES, "cash", "a")


def import_folder(folder: Path, answers: Answers | None = None, **flags: object) -> Imported:
    graph = onnx_model.find_graph(folder)
    assert graph is not None
    answers = Answers() if answers is None else answers
    return onnx_model.import_folder(folder, graph, TEXTS, Settings(**flags), answers)


def import_file(path: Path, **flags: object) -> Imported:
    return onnx_model.import_file(path, TEXTS, Settings(**flags), Answers())


def rows_of(made: Imported) -> list[np.ndarray]:
    tokenizer = Tokenizer(made.tokenizer, made.contract)
    return [tokenizer.encode(text).ids for text in TEXTS]


def embeddings(made: Imported) -> Embeddings:
    """All texts in one batch, so that most of them are padded."""
    return GraphSession(made.graph, made.contract)(rows_of(made))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def check(made: Imported, expected: np.ndarray) -> None:
    """Both the twin and the source that its gate holds it against give what is expected."""
    np.testing.assert_allclose(embeddings(made), expected, atol=2e-6)
    np.testing.assert_allclose(made.source.embed(rows_of(made)), expected, atol=2e-6)


BY_HAND = {
    "cls": lambda s: s[0],
    "max": lambda s: s.max(axis=0),
    "mean": lambda s: s.mean(axis=0),
    "mean_sqrt_len": lambda s: s.sum(axis=0) / np.sqrt(len(s)),
    "weightedmean": lambda s: np.average(s, axis=0, weights=np.arange(1, len(s) + 1)),
    "lasttoken": lambda s: s[-1],
}


# In opset 18 the axes of most reductions moved from an attribute to an input.
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_each_pooling_in_the_graph_gives_what_it_gives_by_hand(tmp_path: Path, opset: int) -> None:
    folder = save_onnx_folder(tmp_path / "m", text_graph(opset=opset))
    for pooling, by_hand in BY_HAND.items():
        made = import_folder(folder, pooling=(pooling,), normalize=False)
        check(made, np.stack([by_hand(TABLE[ids]) for ids in rows_of(made)]))
        assert made.origin["pooling"] == [pooling]


def test_what_the_folder_says_of_pooling_and_layers_goes_behind_the_graph(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_onnx_folder(folder / "onnx", text_graph(types=True))
    for name in ("tokenizer.json", "config.json"):
        (folder / "onnx" / name).rename(folder / name)
    save_modules(folder, "Transformer", "Pooling", "Dense", "Normalize")
    save_pooling(folder, "mean_tokens", "cls_token")
    torch.manual_seed(1)
    weight, bias = torch.randn(10, 16), torch.randn(10)
    for activation, by_hand in ACTIVATIONS.items():
        save_dense(folder / "2_Dense", weight, bias, f"torch.nn.modules.{activation}")
        made = import_folder(folder)
        states = [TABLE[ids] for ids in rows_of(made)]
        pooled = torch.tensor(np.stack([np.r_[s[0], s.mean(axis=0)] for s in states]))
        check(made, unit(by_hand(pooled @ weight.T + bias).numpy()))
    assert (made.dimension, made.normalized) == (10, True)
    assert made.contract.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert sorted(made.origin["files"]) == [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "config.json",
        "modules.json",
        "onnx/model.onnx",
        "tokenizer.json",
    ]


ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "Sigmoid": torch.sigmoid,
    "GELU": torch.nn.functional.gelu,
    "SiLU": torch.nn.functional.silu,
}


def test_weights_beside_the_graph_are_folded_into_the_twin(tmp_path: Path) -> None:
    folder = save_onnx_folder(tmp_path / "m", text_graph())
    onnx.save(
        text_graph(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    made = import_folder(folder, pooling=("mean",), normalize=False)
    check(made, np.stack([TABLE[ids].mean(axis=0) for ids in rows_of(made)]))
    assert "model.onnx_data" in made.origin["files"]
    (folder / "model.onnx_data").unlink()
    with pytest.raises(DataError, match=r"lie in model\.onnx_data, which is missing"):
        import_folder(folder)


def test_an_embedding_that_the_graph_pools_itself_is_not_pooled_again(tmp_path: Path) -> None:
    answers = Answers()
    made = import_folder(save_onnx_folder(tmp_path / "m", text_graph(rank=2)), answers)
    check(made, unit(np.stack([TABLE[ids].sum(axis=0) for ids in rows_of(made)])))
    assert made.origin["pooling"] == []
    assert "pooling" not in [answer.question for answer in answers.given]


def test_a_cut_is_made_before_unit_length(tmp_path: Path) -> None:
    made = import_folder(
        save_onnx_folder(tmp_path / "m", text_graph()),
        dimension=6,
        truncations=(4, 2, 6),
        metric=Metric.EUCLIDEAN,
        normalize=True,
    )
    check(made, unit(np.stack([TABLE[ids].mean(axis=0)[:6] for ids in rows_of(made)])))
    assert (made.dimension, made.truncations) == (6, (4, 2))


def test_ids_of_32_bits_and_other_names_are_fed_all_the_same(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["states"]),
        helper.make_node("Cast", ["the_mask"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "two"], ["wide"]),
        helper.make_node("Mul", ["states", "wide"], ["out"]),
    ]
    model = graph_of(
        nodes,
        [value(name, TensorProto.INT32, "n", "l") for name in ("the_mask", "tokens")],
        [value("out", TensorProto.FLOAT, "n", "l", 8)],
        {"table": TABLE, "two": np.array([2], np.int64)},
    )
    made = import_folder(save_onnx_folder(tmp_path / "m", model), normalize=False)
    check(made, np.stack([TABLE[ids].mean(axis=0) for ids in rows_of(made)]))
    assert made.contract.inputs == ("input_ids", "attention_mask")


class TestFileAlone:
    def test_flags_say_what_no_folder_does(self, tmp_path: Path) -> None:
        (tmp_path / "t.json").write_text(tokenizer_json())
        onnx.save(text_graph(), tmp_path / "any.onnx")
        made = import_file(
            tmp_path / "any.onnx",
            tokenizer=tmp_path / "t.json",
            pooling=("max",),
            normalize=True,
            max_tokens=20,
            prompts={"ask": "why "},
            default_prompt="ask",
        )
        check(made, unit(np.stack([TABLE[ids].max(axis=0) for ids in rows_of(made)])))
        assert made.contract.max_tokens == 20
        assert made.contract.default_prompt == "ask"
        assert made.origin["kind"] == "onnx"
        # A list of digests: the file's name stays out of the twin.
        assert [len(digest) for digest in made.origin["files"]] == [64]

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        onnx.save(text_graph(), tmp_path / "any.onnx")
        with pytest.raises(ConfigError, match=r"takes token ids.*give --tokenizer FILE"):
            import_file(tmp_path / "any.onnx")

    def test_states_without_a_pooling(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text(tokenizer_json())
        onnx.save(text_graph(), tmp_path / "any.onnx")
        with pytest.raises(
            ConfigError, match=r"last_hidden_state gives a vector per token.*--pool"
        ):
            import_file(tmp_path / "any.onnx")


class TestRefusals:
    def test_several_outputs_of_unknown_names(self, tmp_path: Path) -> None:
        model = text_graph(second=True)
        for output, name in zip(model.graph.output, ("left", "right"), strict=True):
            for node in model.graph.node:
                if node.output[0] == output.name:
                    node.output[0] = name
            output.name = name
        folder = save_onnx_folder(tmp_path / "m", model)
        with pytest.raises(ConfigError, match=r"2 outputs \(left .*; right .*--output"):
            import_folder(folder)
        made = import_folder(folder, output="right", normalize=False)
        check(made, np.stack([TABLE[ids[0]] for ids in rows_of(made)]))
        assert made.origin["output"] == "right"
        with pytest.raises(ConfigError, match=r"no output 'middle'; it has: left"):
            import_folder(folder, output="middle")

    def test_a_usual_output_goes_before_others(self, tmp_path: Path) -> None:
        folder = save_onnx_folder(tmp_path / "m", text_graph(second=True))
        assert import_folder(folder).origin["output"] == "last_hidden_state"

    @pytest.mark.parametrize(
        ("model", "sentence"),
        [
            (text_graph(length=16), "fixes its length to 16 tokens"),
            (text_graph(mask=False), "takes no attention mask"),
        ],
    )
    def test_graphs_that_no_text_twin_can_be(
        self, tmp_path: Path, model: onnx.ModelProto, sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence):
            import_folder(save_onnx_folder(tmp_path / "m", model))

    def test_an_input_that_a_text_twin_does_not_give(self, tmp_path: Path) -> None:
        model = text_graph()
        model.graph.input.append(value("position_ids", TensorProto.INT64, "batch", "sequence"))
        with pytest.raises(ConfigError, match=r"position_ids int64 .*does not give"):
            import_folder(save_onnx_folder(tmp_path / "m", model))

    def test_an_output_of_rank_four(self, tmp_path: Path) -> None:
        model = text_graph()
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array([3], np.int64), "three")
        )
        model.graph.node.append(
            helper.make_node("Unsqueeze", ["last_hidden_state", "three"], ["deep"])
        )
        del model.graph.output[:]
        model.graph.output.append(value("deep", TensorProto.FLOAT, "batch", "sequence", 8, 1))
        with pytest.raises(ConfigError, match=r"deep has rank 4 .*rank 2 \[batch, dimension\]"):
            import_folder(save_onnx_folder(tmp_path / "m", model))

    def test_more_tokens_than_places(self, tmp_path: Path) -> None:
        folder = save_onnx_folder(tmp_path / "m", text_graph())
        with pytest.raises(ConfigError, match=f"places for {PLACES}"):
            import_folder(folder, max_tokens=PLACES + 1)

    def test_a_folder_without_a_tokenizer(self, tmp_path: Path) -> None:
        folder = save_onnx_folder(tmp_path / "m", text_graph())
        (folder / "tokenizer.json").unlink()
        with pytest.raises(DataError, match=r"no tokenizer\.json"):
            import_folder(folder)

    def test_several_files_of_no_usual_name(self, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            onnx.save(text_graph(), tmp_path / name)
        with pytest.raises(ConfigError, match=r"2 ONNX files \(a\.onnx, b\.onnx\)"):
            onnx_model.find_graph(tmp_path)
