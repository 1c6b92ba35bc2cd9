"""The graph: raw pixels in any batch, no word of its maker, and the same bytes every day."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tests.export.conftest import CONTRACT, make_twin, random_inputs
from twinserve.errors import GateFailed, ManifestError, NotBuilt
from twinserve.export.session import GraphSession, embed_all
from twinserve.export.to_onnx import check_graph, check_size, to_onnx, weights_digest
from twinserve.manifest import TensorInput
from twinserve.train.evaluate import embed
from twinserve.train.twins import Twin


def test_the_graph_takes_raw_pixels_and_gives_embeddings_of_any_batch(model: bytes) -> None:
    graph = onnx.load_from_string(model).graph
    (image,), (embedding,) = graph.input, graph.output
    assert (image.name, embedding.name) == ("image", "embedding")
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    assert embedding.type.tensor_type.elem_type == TensorProto.FLOAT
    for value, rest in ((image, [16, 16, 1]), (embedding, [12])):
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert not batch.HasField("dim_value")
        assert [dim.dim_value for dim in others] == rest
    check_graph(model, CONTRACT, 12)


def test_the_model_is_valid_onnx_of_the_stated_opset(model: bytes) -> None:
    opened = onnx.load_from_string(model)
    onnx.checker.check_model(opened, full_check=True)
    assert [(entry.domain, entry.version) for entry in opened.opset_import] == [("", 20)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 100])
def test_the_graph_repeats_the_twin_at_every_batch_size(
    model: bytes, twin: Twin, count: int
) -> None:
    inputs = random_inputs(count)
    found = GraphSession(model)(inputs)
    np.testing.assert_allclose(found, embed(twin, inputs), rtol=0, atol=1e-5)


def test_embedding_many_is_embedding_each(model: bytes) -> None:
    session, inputs = GraphSession(model), random_inputs(130)
    one_by_one = np.concatenate([session(inputs[i : i + 1]) for i in range(130)])
    np.testing.assert_allclose(embed_all(session, inputs), one_by_one, rtol=0, atol=1e-6)


def test_nothing_in_the_file_tells_of_the_exporting_machine(model: bytes) -> None:
    opened = onnx.load_from_string(model)
    assert not opened.metadata_props
    assert not opened.graph.metadata_props
    for node in opened.graph.node:
        assert (node.doc_string, list(node.metadata_props)) == ("", [])
    for value in (*opened.graph.input, *opened.graph.output):
        assert (value.doc_string, list(value.metadata_props)) == ("", [])
    for trace in (b"stack_trace", b".py", b"site-packages", os.getcwd().encode(), b"torch"):
        assert trace not in model


def test_the_weights_digest_changes_with_what_changes_embeddings_and_nothing_else(
    twin: Twin,
) -> None:
    before = weights_digest(twin)
    assert before == weights_digest(make_twin())
    twin.ink_inverted = not twin.ink_inverted
    assert weights_digest(twin) != before
    twin.ink_inverted = not twin.ink_inverted
    assert before != weights_digest(make_twin(seed=4))
    with torch.no_grad():
        next(iter(twin.parameters())).view(-1)[0] += 1e-3
    assert weights_digest(twin) != before


def test_weights_above_two_gigabytes_are_refused_before_any_work(twin: Twin) -> None:
    # A tensor on the meta device has a size and no memory.
    twin.register_buffer("ballast", torch.empty(2**29, device="meta"))
    with pytest.raises(ManifestError, match="above the 2 GB"):
        check_size(twin)
    with pytest.raises(ManifestError, match="above the 2 GB"):
        to_onnx(twin)


def test_a_modality_without_an_exporter_says_so(twin: Twin) -> None:
    twin.contract = TensorInput((4,))  # type: ignore[assignment]
    with pytest.raises(NotBuilt, match="TensorInput"):
        to_onnx(twin)


class FixesItsBatch(nn.Module):
    """A body that reshapes to the batch it was traced with."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(3, 256)[:, :12]


def test_a_module_that_fixes_its_batch_is_refused(twin: Twin) -> None:
    twin.body = FixesItsBatch()
    with pytest.raises(GateFailed, match=r"the graph's inputs are .*\(3, 16, 16, 1\)"):
        to_onnx(twin)


class SortsByEigenvalue(nn.Module):
    """A body with an operation that ONNX lacks."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(pixels[:, 0, :12, :12])


def test_an_operation_that_onnx_lacks_is_named(twin: Twin) -> None:
    twin.body = SortsByEigenvalue()
    with pytest.raises(GateFailed, match=r"cannot be written as ONNX .*eigh") as caught:
        to_onnx(twin)
    assert caught.value.metadata == {"figure": "export"}


def edited(model: bytes, edit: str) -> bytes:
    opened = onnx.load_from_string(model)
    graph = opened.graph
    if edit == "fixed batch":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    elif edit == "other name":
        graph.output[0].name = "features"
    elif edit == "second output":
        graph.output.append(helper.make_tensor_value_info("linear", TensorProto.FLOAT, [None, 12]))
    elif edit == "wrong rank":
        del graph.output[0].type.tensor_type.shape.dim[1]
    elif edit == "wrong type":
        graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return opened.SerializeToString()


@pytest.mark.parametrize(
    ("edit", "figure"),
    [
        ("fixed batch", "inputs"),
        ("other name", "outputs"),
        ("second output", "outputs"),
        ("wrong rank", "outputs"),
        ("wrong type", "inputs"),
    ],
)
def test_a_graph_of_another_signature_is_refused(model: bytes, edit: str, figure: str) -> None:
    with pytest.raises(GateFailed, match=f"the graph's {figure} are") as caught:
        check_graph(edited(model, edit), CONTRACT, 12)
    assert caught.value.metadata["figure"] == figure


def test_a_graph_for_another_contract_or_dimension_is_refused(model: bytes) -> None:
    with pytest.raises(GateFailed, match="inputs"):
        check_graph(model, dataclasses.replace(CONTRACT, width=15), 12)
    with pytest.raises(GateFailed, match="outputs"):
        check_graph(model, CONTRACT, 13)


def test_bytes_that_the_runtime_cannot_load_fail_the_gate() -> None:
    with pytest.raises(GateFailed, match="cannot load the graph"):
        GraphSession(b"\x08\x0a\x3a\x00")
