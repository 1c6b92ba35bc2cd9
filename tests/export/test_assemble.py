"""The one path of runs and imports: from a graph and its evidence to files, or to a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.export.conftest import CONTRACT, make_twin
from tests.export.text_twins import make_text_twin, text_rows
from twinserve import manifest as manifests
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError, GateFailed, ManifestError
from twinserve.export import overlap
from twinserve.export.assemble import Outcome, assemble, check_precisions, paths_for, write
from twinserve.export.evidence import Evidence, Facts, Lowered, OneShotSettings, Reference
from twinserve.export.exporter import torch_source
from twinserve.export.pairs import Pairs
from twinserve.export.session import GraphSession, embed_all
from twinserve.export.to_onnx import weights_digest
from twinserve.feed import Rows
from twinserve.train.data import Labelled
from twinserve.train.twins import Twin

ONE_SHOT = OneShotSettings(ways=5, trials=50)


def facts_of(twin: Twin) -> Facts:
    return Facts(
        name="twin",
        version="1",
        contract=twin.contract,
        dimension=twin.dimension,
        metric=twin.metric,
        normalized=twin.normalized,
        weights_digest=weights_digest(twin),
        truncations=twin.truncations,
        tokenizer=twin.tokenizer,
    )


def pictures(seed: int, classes: int = 20, items: int = 6) -> Labelled:
    """A pattern per class and noise per item."""
    generator = np.random.default_rng(seed)
    patterns = generator.normal(size=(classes, 1, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    noise = generator.normal(size=(classes, items, 16, 16))
    rows = np.clip(128 + 50 * patterns + 20 * noise, 0, 255).astype(np.uint8)
    return labelled(rows.reshape(-1, 16, 16, 1), classes, items)


def questions(classes: int = 20, items: int = 6) -> Labelled:
    """Texts of a class are one text with a word changed."""
    generator = np.random.default_rng(0)
    rows = []
    for base in text_rows(classes, seed=1):
        for _ in range(items):
            row = base.copy()
            row[generator.integers(1, len(row) - 1)] = generator.integers(4, 100)
            rows.append(row)
    return labelled(rows, classes, items)


def labelled(rows: Rows, classes: int, items: int) -> Labelled:
    return Labelled(
        rows=rows,
        labels=np.repeat(np.arange(classes), items),
        class_names=tuple(f"c{number}" for number in range(classes)),
        names=tuple(str(number) for number in range(classes * items)),
    )


@pytest.fixture(scope="module")
def texts(text_model: bytes) -> Outcome:
    """A text twin, calibrated and reported, in fp32."""
    twin = make_text_twin()
    return assemble(
        text_model,
        facts_of(twin),
        torch_source(twin),
        Evidence(
            gate=text_rows(80),
            calibrate=questions(),
            kind="labels",
            report=questions(),
            one_shot=ONE_SHOT,
        ),
    )


def test_a_text_twin_s_file_holds_all_that_serving_needs(texts: Outcome, tmp_path: Path) -> None:
    (made,) = texts.twins
    paths = write(texts, tmp_path / "twin.onnx")
    assert paths == {"fp32": tmp_path / "twin.onnx"}
    found = manifests.read(paths["fp32"])
    twin = make_text_twin()
    assert found == made.manifest
    assert (found.modality, found.input, found.truncations) == ("text", twin.contract, (16,))
    assert manifests.read_tokenizer(paths["fp32"]) == twin.tokenizer
    assert found.parity["samples"] == "held out"
    assert found.parity["vectors"]["lengths"][0]["tokens"] == 3
    assert found.parity["decisions"]["disagreements"] == 0
    assert "report" in found.training


def test_every_truncation_has_thresholds_of_its_own(texts: Outcome, text_model: bytes) -> None:
    manifest = texts.twins[0].manifest
    assert {entry.dimension for entry in manifest.calibrations} == {32, 16}
    full, half = manifest.calibration(32), manifest.calibration(16)
    assert full is not None
    assert half is not None
    assert full.points != half.points
    assert full.evidence == half.evidence == "labels"
    decisions = manifest.parity["decisions_of_truncations"]
    assert list(decisions) == ["16"]
    assert decisions["16"]["operating_points"] == len(half.points)
    assert decisions["16"]["disagreements"] == 0


def test_equal_inputs_give_equal_bytes(texts: Outcome, text_model: bytes) -> None:
    twin = make_text_twin()
    again = assemble(
        text_model,
        facts_of(twin),
        torch_source(twin),
        Evidence(
            gate=text_rows(80),
            calibrate=questions(),
            kind="labels",
            report=questions(),
            one_shot=ONE_SHOT,
        ),
    )
    assert again.twins[0].content == texts.twins[0].content


def test_without_calibrating_data_there_are_no_thresholds(model: bytes) -> None:
    twin = make_twin()
    outcome = assemble(
        model,
        dataclasses.replace(facts_of(twin), origin={"kind": "onnx"}),
        torch_source(twin),
        Evidence(gate=pictures(0).rows, samples="built in"),
    )
    found = outcome.twins[0].manifest
    assert (found.calibrations, found.training) == ((), {})
    assert found.origin == {"kind": "onnx"}
    assert found.parity["samples"] == "built in"
    assert "decisions" not in found.parity


def test_judged_pairs_set_thresholds_as_well(model: bytes) -> None:
    twin, data = make_twin(), pictures(2)
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, len(data), (2, 4000))
    kept = first < second
    first, second = first[kept], second[kept]
    pairs = Pairs(
        rows=list(data.rows),
        names=data.names,
        first=first,
        second=second,
        same=data.labels[first] == data.labels[second],
        subjects=data.labels,
        digest="d" * 64,
    )
    outcome = assemble(
        model, facts_of(twin), torch_source(twin), Evidence(gate=data.rows, pairs=pairs)
    )
    (found,) = outcome.twins[0].manifest.calibrations
    assert (found.evidence, found.data_digest) == ("pairs", "d" * 64)
    embeddings = embed_all(GraphSession(model, CONTRACT), data.rows)
    apart = 1.0 - np.sum(embeddings[first] * embeddings[second], axis=1)
    point = found.points[0]
    assert np.mean(apart[~pairs.same] <= point.threshold) == pytest.approx(
        point.false_accept_rate, abs=1e-3
    )


def test_a_calibration_set_that_was_trained_on_is_refused(model: bytes) -> None:
    twin, data = make_twin(), pictures(2)
    trained = {overlap.KEY: overlap.sketches(data.of_classes(["c3", "c4"]))}
    with pytest.raises(DataError, match=r"12 of its 120 items \(10.0%\), and 2 of its classes"):
        assemble(
            model,
            dataclasses.replace(facts_of(twin), training=trained),
            torch_source(twin),
            Evidence(gate=data.rows, calibrate=data),
        )


def test_one_class_gives_no_thresholds_but_a_sentence(model: bytes) -> None:
    twin, data = make_twin(), pictures(2)
    with pytest.raises(DataError, match="no impostor pair"):
        assemble(
            model,
            facts_of(twin),
            torch_source(twin),
            Evidence(gate=data.rows, calibrate=data.of_classes(["c3"])),
        )


def test_the_graph_of_another_twin_is_refused(model: bytes) -> None:
    other = make_twin(seed=9)
    with pytest.raises(GateFailed, match="max_abs_difference"):
        assemble(model, facts_of(other), torch_source(other), Evidence(gate=pictures(0).rows))


def test_a_text_twin_without_its_tokenizer_is_refused(text_model: bytes) -> None:
    twin = make_text_twin()
    with pytest.raises(ManifestError, match="tokenizer"):
        assemble(
            text_model,
            dataclasses.replace(facts_of(twin), tokenizer=None),
            torch_source(twin),
            Evidence(gate=text_rows()),
        )


def test_a_precision_that_fails_its_gate_is_named_and_the_others_are_made(model: bytes) -> None:
    twin, data = make_twin(), pictures(1)
    held: list[Reference] = []

    def lower(precision: str, graph: bytes, reference: Reference) -> Lowered:
        held.append(reference)
        if precision == "int8":
            raise GateFailed("the gate of int8 failed: cosine_mean is 0.9, the limit is 0.985")
        return Lowered(scaled(graph, 1.0 + 1e-3), {"made": {"method": precision}})

    outcome = assemble(
        model,
        facts_of(twin),
        torch_source(twin),
        Evidence(gate=data.rows, calibrate=data, ranges=data.rows[:9]),
        ("int8", "fp16", "fp32"),
        lower=lower,
    )
    assert [made.precision for made in outcome.twins] == ["fp16", "fp32"]
    assert {key: error.message for key, error in outcome.refused.items()} == {
        "int8": "the gate of int8 failed: cosine_mean is 0.9, the limit is 0.985"
    }
    half, full = (made.manifest for made in outcome.twins)
    assert half.space_id == full.space_id
    assert half.graph_digest != full.graph_digest
    assert half.parity["made"] == {"method": "fp16"}
    assert half.parity["source"].startswith("fp32 graph")
    assert half.parity["vectors"]["max_abs_difference"]["7"] == pytest.approx(4e-4, abs=3e-4)
    embeddings = embed_all(GraphSession(model, CONTRACT), data.rows)
    for reference in held:
        assert len(reference.ranges) == 9
        np.testing.assert_array_equal(reference.calibrate_embeddings, embeddings)
        assert tuple(reference.calibrations) == full.calibrations


def test_each_precision_is_calibrated_on_its_own_embeddings(model: bytes) -> None:
    twin, data = make_twin(), pictures(1)

    def lower(precision: str, graph: bytes, _: Reference) -> Lowered:
        return Lowered(scaled(graph, 1.1), {})

    outcome = assemble(
        model,
        dataclasses.replace(facts_of(twin), metric=Metric.EUCLIDEAN),
        torch_source(twin),
        Evidence(gate=data.rows, calibrate=data),
        ("fp32", "int8"),
        lower=lower,
    )
    full, scaled_up = (made.manifest.calibrations[0] for made in outcome.twins)
    assert (full.precision, scaled_up.precision) == ("fp32", "int8")
    for one, other in zip(full.points, scaled_up.points, strict=True):
        assert other.threshold == pytest.approx(1.1 * one.threshold, rel=1e-4)
        assert other.false_accept_rate == one.false_accept_rate


def test_another_precision_s_graph_must_keep_the_signature(model: bytes) -> None:
    def lower(precision: str, graph: bytes, _: Reference) -> Lowered:
        opened = onnx.load_from_string(graph)
        opened.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        return Lowered(opened.SerializeToString(), {})

    twin = make_twin()
    outcome = assemble(
        model,
        facts_of(twin),
        torch_source(twin),
        Evidence(gate=pictures(1).rows),
        ("fp16",),
        lower=lower,
    )
    assert outcome.twins == ()
    assert "takes a batch of 1 only" in outcome.refused["fp16"].message


def test_another_precision_far_from_the_fp32_graph_is_refused(model: bytes) -> None:
    def lower(precision: str, graph: bytes, _: Reference) -> Lowered:
        return Lowered(scaled(graph, 1.5), {})

    twin = make_twin()
    outcome = assemble(
        model,
        facts_of(twin),
        torch_source(twin),
        Evidence(gate=pictures(1).rows),
        ("fp16",),
        lower=lower,
    )
    assert "max_abs_difference" in outcome.refused["fp16"].message


def scaled(graph: bytes, factor: float) -> bytes:
    """The graph with its embeddings multiplied."""
    opened = onnx.load_from_string(graph)
    last = next(node for node in opened.graph.node if "embedding" in node.output)
    last.output[:] = ["before" if name == "embedding" else name for name in last.output]
    weight = onnx.numpy_helper.from_array(np.float32(factor), "factor")
    opened.graph.initializer.append(weight)
    opened.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["embedding"]))
    return opened.SerializeToString()


def test_precisions_are_checked_before_any_work() -> None:
    with pytest.raises(ConfigError, match="'fp8'; known ones are fp32, fp16, int8"):
        check_precisions(("fp32", "fp8"))
    with pytest.raises(ConfigError, match="int8 is named twice"):
        check_precisions(("int8", "int8"))
    with pytest.raises(ConfigError, match="no precision is named"):
        check_precisions(())


@pytest.mark.parametrize(
    ("out", "precisions", "names"),
    [
        ("t.onnx", ("fp32",), ["t.onnx"]),
        ("t.onnx", ("fp32", "fp16", "int8"), ["t.onnx", "t.fp16.onnx", "t.int8.onnx"]),
        ("t.onnx", ("int8",), ["t.int8.onnx"]),
        ("t.int8.onnx", ("int8",), ["t.int8.onnx"]),
        ("t.fp32.onnx", ("fp32",), ["t.fp32.onnx"]),
        ("twin", ("fp32", "fp16"), ["twin", "twin.fp16.onnx"]),
    ],
)
def test_each_precision_has_a_file_of_its_own(
    out: str, precisions: tuple[str, ...], names: list[str]
) -> None:
    found = paths_for(Path("folder") / out, precisions)
    assert list(found) == list(precisions)
    assert [str(path) for path in found.values()] == [f"folder/{name}" for name in names]


def test_a_name_that_says_another_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"t.int8.onnx says that it is int8.*--out t.onnx"):
        paths_for(Path("t.int8.onnx"), ("fp32", "int8"))
    with pytest.raises(ConfigError, match="says that it is fp16, and int8"):
        paths_for(Path("t.fp16.onnx"), ("int8",))
