"""The graph: raw input in any batch, no word of its maker, and the same bytes every day."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

import twinserve
from tests.export.conftest import CONTRACT, make_twin, random_inputs
from tests.export.text_twins import (
    DIMENSION,
    MAX_TOKENS,
    VOCABULARY,
    make_text_twin,
    text_contract,
    text_rows,
    tokenizer_json,
)
from twinserve.distance import Metric
from twinserve.errors import GateFailed, ManifestError
from twinserve.export.session import GraphSession, embed_all
from twinserve.export.signature import check_graph
from twinserve.export.to_onnx import to_onnx, vocabulary_rows, weights_digest
from twinserve.feed import feed
from twinserve.manifest import TensorInput
from twinserve.train.evaluate import embed
from twinserve.train.twins import ImageTwin, TensorTwin, TextTwin

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from tests.export.text_twins import make_text_twin
from twinserve.export.to_onnx import to_onnx
Path(sys.argv[1]).write_bytes(to_onnx(make_text_twin()))
"""


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
    model: bytes, twin: ImageTwin, count: int
) -> None:
    inputs = random_inputs(count)
    found = GraphSession(model, CONTRACT)(inputs)
    np.testing.assert_allclose(found, embed(twin, inputs), rtol=0, atol=1e-5)


def test_a_graph_that_sums_mirror_images_repeats_its_twin(twin: ImageTwin) -> None:
    twin.mirror_summed = True
    session = GraphSession(to_onnx(twin), CONTRACT)
    for count in (1, 3):
        inputs = random_inputs(count)
        np.testing.assert_allclose(session(inputs), embed(twin, inputs), rtol=0, atol=1e-5)
        mirrored = np.ascontiguousarray(inputs[:, :, ::-1])
        np.testing.assert_allclose(session(mirrored), session(inputs), rtol=0, atol=1e-5)


def test_embedding_many_is_embedding_each(model: bytes) -> None:
    session, inputs = GraphSession(model, CONTRACT), random_inputs(130)
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
    twin: ImageTwin,
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


def test_weights_above_two_gigabytes_are_refused_before_any_work(twin: ImageTwin) -> None:
    # A tensor on the meta device has a size and no memory.
    twin.register_buffer("ballast", torch.empty(2**29, device="meta"))
    with pytest.raises(ManifestError, match="above the 2 GB"):
        to_onnx(twin)


def test_a_twin_of_vectors_is_repeated_at_every_batch_size() -> None:
    torch.manual_seed(0)
    twin = TensorTwin(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5)),
        contract=TensorInput((3, 4)),
        dimension=5,
        metric=Metric.EUCLIDEAN,
        normalized=False,
    ).eval()
    model = to_onnx(twin)
    check_graph(model, twin.contract, 5)
    rows = np.random.default_rng(0).normal(size=(9, 3, 4)).astype(np.float32)
    for count in (1, 2, 9):
        found = GraphSession(model, twin.contract)(rows[:count])
        np.testing.assert_allclose(found, embed(twin, rows[:count]), rtol=0, atol=1e-5)


def test_a_text_graph_has_an_open_batch_and_an_open_length(text_model: bytes) -> None:
    graph = onnx.load_from_string(text_model).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    for value in graph.input:
        assert value.type.tensor_type.elem_type == TensorProto.INT64
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch", "length"]
    (embedding,) = graph.output
    assert embedding.name == "embedding"
    assert embedding.type.tensor_type.shape.dim[1].dim_value == DIMENSION


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_a_text_graph_repeats_its_twin_at_every_length(text_model: bytes, count: int) -> None:
    twin = make_text_twin()
    rows = [np.full(1, 9), np.arange(4, 4 + MAX_TOKENS), *text_rows()][:count]
    expected = np.concatenate([embed(twin, [row]) for row in rows])
    session = GraphSession(text_model, twin.contract)
    np.testing.assert_allclose(session(rows), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embed_all(session, rows, 8), expected, rtol=0, atol=1e-5)


def test_what_stands_under_the_mask_changes_nothing(text_model: bytes) -> None:
    twin = make_text_twin()
    rows = text_rows(3)
    fed = feed(rows, twin.contract)
    other = {**fed, "input_ids": np.where(fed["attention_mask"] == 0, 77, fed["input_ids"])}
    assert not np.array_equal(fed["input_ids"], other["input_ids"])
    session = onnxruntime.InferenceSession(text_model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, fed)[0], session.run(None, other)[0], rtol=0, atol=1e-6
    )


@pytest.mark.long  # of pictures the exporter's test shows the same in every run
def test_equal_text_twins_give_equal_bytes_that_tell_nothing_of_the_machine(
    text_model: bytes, tmp_path: Path
) -> None:
    root = Path(twinserve.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "again.onnx")],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "54321"},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "again.onnx").read_bytes() == text_model
    for trace in (b"stack_trace", b".py", b"site-packages", os.getcwd().encode(), b"torch"):
        assert trace not in text_model


def test_a_tokenizer_beyond_the_embedding_table_is_refused_before_the_export() -> None:
    twin = make_text_twin(vocabulary=60)
    assert vocabulary_rows(twin) == 60
    with pytest.raises(ManifestError, match=r"largest id is \d+, the encoder's .* ends at id 59"):
        to_onnx(twin)


class FixesItsLength(nn.Module):
    """An encoder that multiplies by positions of the length it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, DIMENSION)
        self.positions = nn.Parameter(torch.ones(7, DIMENSION))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.table(ids) * self.positions


def test_an_encoder_that_fixes_its_length_is_refused() -> None:
    twin = TextTwin(
        FixesItsLength(),
        contract=text_contract(),
        tokenizer=tokenizer_json(),
        dimension=DIMENSION,
        metric=Metric.COSINE,
        normalized=True,
    ).eval()
    with pytest.raises(GateFailed, match=r"cannot be written as ONNX|takes a length of 7 only"):
        to_onnx(twin)


class FixesItsBatch(nn.Module):
    """A body that reshapes to the batch it was traced with."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(3, 256)[:, :12]


def test_a_module_that_fixes_its_batch_is_refused(twin: ImageTwin) -> None:
    twin.body = FixesItsBatch()
    with pytest.raises(GateFailed, match=r"'image' takes a batch of 3 only"):
        to_onnx(twin)


class SortsByEigenvalue(nn.Module):
    """A body with an operation that ONNX lacks."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(pixels[:, 0, :12, :12])


def test_an_operation_that_onnx_lacks_is_named(twin: ImageTwin) -> None:
    twin.body = SortsByEigenvalue()
    with pytest.raises(GateFailed, match=r"cannot be written as ONNX .*eigh") as caught:
        to_onnx(twin)
    assert caught.value.metadata == {"figure": "export"}
