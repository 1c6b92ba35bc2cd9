"""fp16 and int8 forms of small twins, and the gate that they pass or fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.export.conftest import CONTRACT
from tests.export.text_twins import make_text_twin, text_contract
from twinserve import manifest
from twinserve.calibration import pair_distances
from twinserve.cli.__main__ import main
from twinserve.distance import Metric
from twinserve.errors import ConfigError, GateFailed
from twinserve.export.evidence import Facts, Reference
from twinserve.export.precision import lower
from twinserve.export.precision.fp16 import to_fp16
from twinserve.export.precision.int8 import Quantiser
from twinserve.export.precision.joining import join
from twinserve.export.precision.quality import Judge
from twinserve.export.precision.sensitivity import BLOCKS, blocks_of, worst_first
from twinserve.export.session import GraphSession, embed_all
from twinserve.export.to_onnx import to_onnx
from twinserve.manifest import ImageInput
from twinserve.tokens import Tokenizer
from twinserve.train.conv4 import conv4
from twinserve.train.data import Labelled
from twinserve.train.vocabulary import contract_for, train_tokenizer
from twinserve.train.words import words

DIMENSION = 12


def drawings(classes: int = 40, items: int = 6) -> Labelled:
    generator = np.random.default_rng(5)
    patterns = generator.normal(size=(classes, 1, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    noise = generator.normal(size=(classes, items, 16, 16))
    pixels = np.clip(128 + 50 * patterns + 4 * noise, 0, 255).astype(np.uint8)
    names = tuple(f"class{label:02}" for label in range(classes))
    labels = np.repeat(np.arange(classes), items)
    return Labelled(
        pixels.reshape(-1, 16, 16, 1), labels, names, tuple(map(str, range(len(labels))))
    )


@pytest.fixture(scope="module")
def model() -> bytes:
    """The graph of a twin whose batch norms know its inputs, so that embeddings spread."""
    torch.manual_seed(3)
    twin = conv4(CONTRACT, dimension=DIMENSION, width=48, ink_inverted=True).train()
    with torch.no_grad():
        for _ in range(30):
            twin(torch.from_numpy(np.asarray(drawings().rows)))
    return to_onnx(twin.eval())


@pytest.fixture(scope="module")
def reference(model: bytes) -> Reference:
    labelled = drawings()
    embeddings = embed_all(GraphSession(model, CONTRACT), labelled.rows)
    facts = Facts("twin", "1", CONTRACT, DIMENSION, Metric.COSINE, True, "0" * 64)
    return Reference(
        facts=facts,
        gate=labelled.rows[:64],
        gate_embeddings=embeddings[:64],
        ranges=labelled.rows,
        calibrate=labelled,
        pairs=None,
        calibrate_rows=labelled.rows,
        calibrate_embeddings=embeddings,
        calibrations=(),
        distances=lambda found: pair_distances(found, labelled.labels, Metric.COSINE),
        recalibrated=lambda found, precision: (),
    )


@pytest.fixture(scope="module")
def quantiser(model: bytes) -> Quantiser:
    return Quantiser(model, CONTRACT, drawings().rows)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_lowered_twin_passes_its_gate_and_tells_every_figure_with_its_limit(
    precision: str, model: bytes, reference: Reference
) -> None:
    lowered = lower(precision, model, reference)
    names = {figure["figure"] for figure in lowered.parity["figures"]}
    assert {"cosine_worst", "equal_error_rate_lost", "mixed_true_accept_rate_lost"} <= names
    assert all("at_least" in one or "at_most" in one for one in lowered.parity["figures"])
    assert lowered.parity["operating_points"][str(DIMENSION)]
    assert lower(precision, model, reference).model == lowered.model
    inputs = onnx.load_from_string(lowered.model).graph.input
    assert [value.type.tensor_type.elem_type for value in inputs] == [onnx.TensorProto.UINT8]


def test_without_labelled_data_the_report_says_that_only_vectors_were_judged(
    model: bytes, reference: Reference
) -> None:
    bare = dataclasses.replace(
        reference, calibrate=None, calibrate_rows=None, calibrate_embeddings=None
    )
    report = lower("int8", model, bare).parity
    assert "no labelled data" in report["judged_by"]
    assert "neighbour_agreement" in {figure["figure"] for figure in report["figures"]}


def test_int8_weights_keep_to_seven_bits_so_that_no_processor_saturates(
    quantiser: Quantiser,
) -> None:
    graph = onnx.load_from_string(quantiser.quantise()).graph
    weights = [numpy_helper.to_array(one) for one in graph.initializer if one.data_type == 3]
    matrices = [weight for weight in weights if weight.ndim == 4]
    assert len(matrices) == 3  # the first convolution sees a single channel and stays in float
    assert max(np.abs(weight.astype(int)).max() for weight in matrices) <= 64


def test_an_int8_row_embeds_the_same_in_any_company(
    quantiser: Quantiser, reference: Reference
) -> None:
    session = GraphSession(quantiser.quantise(), CONTRACT)
    alone = np.concatenate([session(reference.gate[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(session(reference.gate)[:8], alone, atol=1e-6)


def test_leaving_layers_in_float_brings_the_vectors_nearer(
    quantiser: Quantiser, reference: Reference
) -> None:
    def apart(in_float: tuple[str, ...]) -> float:
        session = GraphSession(quantiser.quantise(in_float), CONTRACT)
        return float(np.abs(session(reference.gate) - reference.gate_embeddings).max())

    assert apart(quantiser.candidates[1:]) < apart(())
    assert quantiser.share(quantiser.candidates) == 0 < quantiser.share() <= 1


def test_harm_is_measured_for_every_block_and_the_worst_comes_first(
    quantiser: Quantiser, reference: Reference
) -> None:
    blocks = worst_first(quantiser, CONTRACT, reference.gate, reference.gate_embeddings)
    assert sorted(name for block in blocks for name in block.nodes) == sorted(quantiser.candidates)
    harms = [block.harm for block in blocks]
    assert harms == sorted(harms, reverse=True)
    assert harms[-1] > 0


def test_deep_graphs_are_cut_into_a_bounded_number_of_blocks() -> None:
    nodes = [f"node {index}" for index in range(100)]
    blocks = blocks_of(nodes)
    assert len(blocks) == BLOCKS
    assert [name for block in blocks for name in block] == nodes


def test_a_candidate_of_other_vectors_fails_on_vectors_decisions_and_mixed_pairs(
    reference: Reference,
) -> None:
    judge = Judge("int8", reference)
    generator = np.random.default_rng(0)
    assert judge.rows is not None
    noise = generator.normal(size=(len(judge.rows), DIMENSION)).astype(np.float32)
    quality = judge.quality(noise[: len(reference.gate)], noise)
    failed = {figure.name for figure in quality.failures}
    assert {"cosine_mean", "equal_error_rate_lost", "recall_at_1_lost"} <= failed


def test_a_turned_space_decides_alike_and_fails_on_mixed_pairs(reference: Reference) -> None:
    judge = Judge("int8", reference)
    source = reference.calibrate_embeddings
    assert source is not None
    quality = judge.quality(-reference.gate_embeddings, -source)
    failed = {figure.name for figure in quality.failures}
    assert "mixed_true_accept_rate_lost" in failed
    assert not {"equal_error_rate_lost", "true_accept_rate_lost", "distance_spearman"} & failed


def test_an_embedding_that_is_no_number_fails(reference: Reference) -> None:
    broken = np.full_like(reference.gate_embeddings, np.nan)
    with pytest.raises(GateFailed, match="NaN"):
        Judge("fp16", reference).quality(broken, None)


def test_a_layer_whose_values_exceed_fp16_stays_in_float(
    model: bytes, reference: Reference
) -> None:
    graph = onnx.load_from_string(model)
    convolution = next(node for node in graph.graph.node if node.op_type == "Conv")
    weight = next(one for one in graph.graph.initializer if one.name == convolution.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1e6, weight.name))
    large = graph.SerializeToString()
    lowered, kept = to_fp16(large, CONTRACT, reference.gate)
    assert kept > 0
    assert to_fp16(model, CONTRACT, reference.gate)[1] == 0
    source = GraphSession(large, CONTRACT)(reference.gate)
    np.testing.assert_allclose(GraphSession(lowered, CONTRACT)(reference.gate), source, atol=5e-3)


def test_a_form_that_is_neither_faster_nor_smaller_is_refused(reference: Reference) -> None:
    bags = ["the card did not arrive", "a transfer was declined", "how long does a cheque take"]
    tokenizer = train_tokenizer(bags, 40)
    contract = contract_for(tokenizer, 16)
    torch.manual_seed(3)
    graph = to_onnx(words(contract, tokenizer, width=16, dimension=DIMENSION).eval())
    encoder = Tokenizer(tokenizer, contract)
    rows = [encoder.encode(text).ids for text in bags * 8]
    texts = dataclasses.replace(
        reference,
        facts=dataclasses.replace(reference.facts, contract=contract),
        gate=rows,
        gate_embeddings=embed_all(GraphSession(graph, contract), rows),
        ranges=rows,
        calibrate=None,
        calibrate_rows=None,
        calibrate_embeddings=None,
    )
    with pytest.raises(GateFailed, match=r"nothing in this twin gains from int8.*serve .* fp32"):
        lower("int8", graph, texts)


def test_products_of_one_input_are_joined_and_give_what_they_gave() -> None:
    graph = onnx.load_from_string(to_onnx(make_text_twin()))
    rows = [np.arange(4, 4 + length) for length in (3, 9, 20)]
    source = GraphSession(graph.SerializeToString(), text_contract())(rows)
    products = sum(node.op_type == "MatMul" for node in graph.graph.node)
    join(graph.graph)
    found = GraphSession(graph.SerializeToString(), text_contract())(rows)
    np.testing.assert_allclose(found, source, atol=1e-5)
    layers = sum(node.op_type == "Split" for node in graph.graph.node)
    assert layers > 0  # queries, keys and values of each
    assert sum(node.op_type == "MatMul" for node in graph.graph.node) == products - 2 * layers
    onnx.checker.check_model(graph)


@pytest.mark.long
def test_a_trained_run_gives_an_int8_file_that_serves_with_decisions_of_its_own(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    run, whole = trained
    for name in ("first", "second"):
        given = [str(run), "--out", str(tmp_path / f"{name}.onnx"), "--name", "drawings"]
        assert main(["export", *given, "--precision", "fp32,int8"]) == 0
    path = tmp_path / "first.int8.onnx"
    assert path.read_bytes() == (tmp_path / "second.int8.onnx").read_bytes()
    twin = manifest.read(path)
    assert twin.precision == "int8"
    assert {entry.precision for entry in twin.calibrations} == {"int8"}
    assert twin.space_id == manifest.read(whole).space_id
    assert "mixed_true_accept_rate_lost" in {one["figure"] for one in twin.parity["figures"]}
    assert isinstance(twin.input, ImageInput)
    shape = (5, twin.input.height, twin.input.width, 1)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    embeddings = GraphSession(path.read_bytes(), twin.input)(pixels)
    assert embeddings.shape == (5, twin.dimension)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_an_unknown_precision_is_refused(model: bytes, reference: Reference) -> None:
    with pytest.raises(ConfigError, match="fp16 and int8"):
        lower("int4", model, reference)
