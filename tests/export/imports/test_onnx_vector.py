"""Graphs that take arrays of one shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.export.imports.conftest import PROJECTION, graph_of, value, vector_graph
from twinserve.distance import Metric
from twinserve.errors import ConfigError
from twinserve.export.imports.onnx_model import import_file
from twinserve.export.imports.source import Imported
from twinserve.export.session import GraphSession
from twinserve.train.pretrained.settings import Answers, Settings


def save(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "any.onnx")
    return folder / "any.onnx"


def read(path: Path, **flags: object) -> Imported:
    return import_file(path, (), Settings(**flags), Answers())


def check(made: Imported, rows: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(GraphSession(made.graph, made.contract)(rows), expected, atol=1e-5)
    np.testing.assert_allclose(made.source.embed(rows), expected, atol=1e-5)


VECTORS = np.random.default_rng(1).normal(size=(70, 6)).astype(np.float32)


def test_vectors_are_given_as_the_graph_gives_them(tmp_path: Path) -> None:
    made = read(save(tmp_path, vector_graph()))
    check(made, VECTORS, VECTORS @ PROJECTION)
    assert (made.contract.shape, made.contract.data_type) == ((6,), "float32")
    assert (made.dimension, made.normalized, made.metric) == (4, False, Metric.COSINE)


def test_they_are_scaled_to_unit_length_on_request(tmp_path: Path) -> None:
    made = read(save(tmp_path, vector_graph()), normalize=True, metric=Metric.EUCLIDEAN)
    projected = VECTORS @ PROJECTION
    check(made, VECTORS, projected / np.linalg.norm(projected, axis=1, keepdims=True))
    assert (made.normalized, made.metric) == (True, Metric.EUCLIDEAN)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (TensorProto.FLOAT16, "float32"),
        (TensorProto.DOUBLE, "float32"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.INT32, "int64"),
    ],
)
def test_a_client_sends_a_type_of_the_contract_whatever_the_graph_takes(
    tmp_path: Path, kind: int, sent: str
) -> None:
    made = read(save(tmp_path, vector_graph(kind=kind)))
    rows = np.arange(18).reshape(3, 6).astype(sent)
    assert made.contract.data_type == sent
    check(made, rows, rows.astype(np.float32) @ PROJECTION)


def test_an_old_opset_is_brought_up(tmp_path: Path) -> None:
    made = read(save(tmp_path, vector_graph(opset=9)), normalize=True)
    projected = VECTORS @ PROJECTION
    check(made, VECTORS, projected / np.linalg.norm(projected, axis=1, keepdims=True))


def test_equal_files_give_equal_twins(tmp_path: Path) -> None:
    path = save(tmp_path, vector_graph())
    assert read(path).graph == read(path).graph
    assert read(path).weights_digest != read(path, normalize=True).weights_digest


def test_what_does_not_lead_to_the_embedding_is_left_out(tmp_path: Path) -> None:
    model = vector_graph()
    model.graph.node.append(helper.make_node("Softmax", ["projected"], ["classes"]))
    model.graph.output.append(value("classes", TensorProto.FLOAT, "batch", 4))
    made = read(save(tmp_path, model), output="projected")
    check(made, VECTORS, VECTORS @ PROJECTION)
    assert "Softmax" not in {
        node.op_type for node in onnx.load_model_from_string(made.graph).graph.node
    }


class TestRefusals:
    def test_several_outputs(self, tmp_path: Path) -> None:
        model = vector_graph()
        model.graph.node.append(helper.make_node("Softmax", ["projected"], ["classes"]))
        model.graph.output.append(value("classes", TensorProto.FLOAT, "batch", 4))
        with pytest.raises(ConfigError, match=r"2 outputs \(projected float32 \[batch, 4\]; class"):
            read(save(tmp_path, model))

    def test_an_open_axis_besides_the_batch(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"open axis besides the batch"):
            read(save(tmp_path, vector_graph(wide="width")))

    def test_a_type_that_no_client_sends(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"vector bool \[batch, 6\]; a client sends float32"):
            read(save(tmp_path, vector_graph(kind=TensorProto.BOOL)))

    def test_a_vector_per_place(self, tmp_path: Path) -> None:
        model = graph_of(
            [helper.make_node("Relu", ["vector"], ["states"])],
            [value("vector", TensorProto.FLOAT, "batch", 5, 6)],
            [value("states", TensorProto.FLOAT, "batch", 5, 6)],
            {},
        )
        with pytest.raises(ConfigError, match=r"states has rank 3 \(\[1, 5, 6\]\).*rank 2"):
            read(save(tmp_path, model))

    def test_no_axis_for_a_batch(self, tmp_path: Path) -> None:
        model = graph_of(
            [helper.make_node("Relu", ["vector"], ["out"])],
            [value("vector", TensorProto.FLOAT, "any")],
            [value("out", TensorProto.FLOAT, "any")],
            {},
        )
        with pytest.raises(ConfigError, match=r"a twin takes \[batch, \.\.\.\]"):
            read(save(tmp_path, model))
