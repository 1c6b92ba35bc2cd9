"""What a graph says of itself: names, types, ranks, open axes, and a tokenizer that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from tests.export.conftest import CONTRACT
from tests.export.text_twins import DIMENSION, VOCABULARY, text_contract, tokenizer_json
from twinserve import tokens
from twinserve.errors import GateFailed, ManifestError
from twinserve.export.signature import check_graph, check_size, check_tokenizer, check_vocabulary
from twinserve.manifest import MAX_BYTES


def fixed_batch(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def other_name(graph: onnx.GraphProto) -> None:
    graph.output[0].name = "features"


def second_output(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info("linear", TensorProto.FLOAT, [None, 12]))


def wrong_rank(graph: onnx.GraphProto) -> None:
    shape = graph.output[0].type.tensor_type.shape
    shape.dim.add().dim_value = 4


def wrong_type(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


Edit = Callable[[onnx.GraphProto], None]


def edited(model: bytes, edit: Edit) -> bytes:
    opened = onnx.load_from_string(model)
    edit(opened.graph)
    return opened.SerializeToString()


@pytest.mark.parametrize(
    ("edit", "sentence", "figure"),
    [
        (fixed_batch, r"'image' takes a batch of 3 only", "inputs"),
        (other_name, r"the graph's outputs are .*features", "outputs"),
        (second_output, r"has 2 outputs \(embedding, linear\)", "outputs"),
        (wrong_rank, r"'embedding' has rank 3 \['batch', 12, 4\]", "outputs"),
        (wrong_type, r"the graph's inputs are ", "inputs"),
    ],
)
def test_a_graph_of_another_signature_is_refused_in_a_sentence(
    model: bytes, edit: Edit, sentence: str, figure: str
) -> None:
    with pytest.raises(GateFailed, match=sentence) as caught:
        check_graph(edited(model, edit), CONTRACT, 12)
    assert caught.value.metadata["figure"] == figure
    assert "nothing was written" in caught.value.message


def test_a_graph_for_another_contract_or_dimension_is_refused(model: bytes) -> None:
    with pytest.raises(GateFailed, match="inputs"):
        check_graph(model, dataclasses.replace(CONTRACT, width=15), 12)
    with pytest.raises(GateFailed, match="outputs"):
        check_graph(model, CONTRACT, 13)


def test_a_text_graph_that_fixes_its_length_is_refused(text_model: bytes) -> None:
    def fixed_length(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[1].dim_value = 128

    check_graph(text_model, text_contract(), DIMENSION)
    with pytest.raises(GateFailed, match=r"'input_ids' takes a length of 128 only"):
        check_graph(edited(text_model, fixed_length), text_contract(), DIMENSION)


def test_a_tokenizer_that_gives_ids_beyond_the_graph_s_table_is_refused(text_model: bytes) -> None:
    check_tokenizer(text_model, text_contract(), tokenizer_json())
    larger = grown_tokenizer(VOCABULARY)
    contract = dataclasses.replace(text_contract(), tokenizer_digest=tokens.digest(larger))
    with pytest.raises(ManifestError, match=rf"largest id is {VOCABULARY}, and the graph cannot"):
        check_tokenizer(text_model, contract, larger)
    with pytest.raises(ManifestError, match=rf"largest id is {VOCABULARY}, .* ends at id 139"):
        check_vocabulary(VOCABULARY, contract, larger)
    check_vocabulary(VOCABULARY + 1, contract, larger)


def test_a_text_twin_without_a_tokenizer_is_refused_and_a_picture_twin_with_one(
    text_model: bytes, model: bytes
) -> None:
    with pytest.raises(ManifestError, match="carries its tokenizer inside its file"):
        check_tokenizer(text_model, text_contract(), None)
    with pytest.raises(ManifestError, match="only a text twin"):
        check_tokenizer(model, CONTRACT, tokenizer_json())


def test_a_tokenizer_that_the_contract_does_not_name_is_refused(text_model: bytes) -> None:
    with pytest.raises(ManifestError, match="not the one that the manifest describes"):
        check_tokenizer(text_model, text_contract(), grown_tokenizer(VOCABULARY - 5))


def test_more_than_two_gigabytes_are_refused() -> None:
    check_size(MAX_BYTES)
    with pytest.raises(ManifestError, match="2147483648 bytes, above the 2 GB"):
        check_size(MAX_BYTES + 1)


def grown_tokenizer(largest: int) -> str:
    """The tokenizer with more words, up to this id."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(tokenizer_json())
    start = made.get_vocab_size(with_added_tokens=True)
    made.add_tokens([f"new{number}" for number in range(start, largest + 1)])
    return str(made.to_str())
