"""A fused graph is kept where it passes the gate and is faster, and the report says which."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from tests.export.test_assemble import facts_of, scaled
from tests.export.text_twins import DIMENSION, make_text_twin, text_contract, text_rows
from twinserve.errors import GateFailed
from twinserve.export.assemble import assemble
from twinserve.export.evidence import Evidence, Lowered, Reference
from twinserve.export.exporter import torch_source
from twinserve.export.fusion import LEAST_GAIN, Speed, fuse, judge, speeds
from twinserve.export.session import GraphSession, embed_all
from twinserve.feed import Rows
from twinserve.manifest import digest_of_graph


class Slow(GraphSession):
    """Takes twenty milliseconds more."""

    def __call__(self, rows: Rows) -> np.ndarray:
        time.sleep(0.02)
        return super().__call__(rows)


def test_a_fused_graph_embeds_as_before_and_nothing_is_printed(
    text_model: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = fuse(text_model)
    assert capsys.readouterr() == ("", "")
    assert fused != text_model
    rows = text_rows(20)
    np.testing.assert_allclose(
        GraphSession(fused, text_contract())(rows),
        GraphSession(text_model, text_contract())(rows),
        rtol=0,
        atol=1e-5,
    )
    assert fuse(text_model) == fused


def test_the_faster_graph_is_told_by_the_ratio_of_times(text_model: bytes) -> None:
    plain, slow = (kind(text_model, text_contract(), 1) for kind in (GraphSession, Slow))
    for speed in speeds(plain, slow, text_rows(20)):
        assert speed.ratio < 0.9
        assert speed.low <= speed.ratio <= speed.high
    assert min(speed.ratio for speed in speeds(slow, plain, text_rows(20))) > 1.2


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [((1.3, 1.06), True), ((1.3, 1.04), False), ((0.85, 1.2), False)],
)
def test_a_gain_counts_when_it_holds_at_every_batch_size(
    ratios: tuple[float, float], kept: bool
) -> None:
    measured = tuple(Speed(size, 9, ratio, ratio, ratio) for size, ratio in enumerate(ratios))
    trial = judge(measured)
    assert trial.kept is kept
    assert f"{min(ratios):.2f} times as fast" in trial.reason
    assert trial.to_dict()["least_gain"] == LEAST_GAIN


def test_the_report_says_what_was_tried_and_the_file_is_the_plain_one_where_it_did_not_pay(
    text_model: bytes,
) -> None:
    twin = make_text_twin()

    def assembled(fused: bytes | None) -> dict[str, object]:
        def fuse(_: bytes) -> bytes:
            if fused is None:
                raise GateFailed("the graph cannot be fused (KeyError: 'x')")
            return fused

        outcome = assemble(
            text_model,
            facts_of(twin),
            torch_source(twin),
            Evidence(gate=text_rows()),
            optimize=True,
            fuse=fuse,
        )
        kept = outcome.twins[0].manifest.parity["optimized"]
        assert isinstance(kept, dict)
        return kept

    same = assembled(text_model)
    assert [entry["batch_size"] for entry in same["speeds"]] == [1, 16]  # type: ignore[attr-defined]
    assert assembled(None) == {
        "kept": False,
        "reason": "the graph cannot be fused (KeyError: 'x')",
        "least_gain": LEAST_GAIN,
        "speeds": [],
    }


def test_a_faster_form_that_passes_the_gate_is_what_is_written_and_measured(
    text_model: bytes,
) -> None:
    twin, rows = make_text_twin(), text_rows()
    # Not quite the plain one, so that it shows whose embeddings are taken further.
    fused = scaled(text_model, 1.0 + 4e-6)
    held: list[tuple[bytes, Reference]] = []

    def lower(precision: str, graph: bytes, reference: Reference) -> Lowered:
        held.append((graph, reference))
        return Lowered(graph, {})

    plain = detour(text_model)
    outcome = assemble(
        plain,
        facts_of(twin),
        torch_source(twin),
        Evidence(gate=rows),
        ("fp32", "fp16"),
        optimize=True,
        fuse=lambda _: fused,
        lower=lower,
    )
    manifest = outcome.twins[0].manifest
    assert manifest.parity["optimized"]["kept"] is True
    assert manifest.graph_digest == digest_of_graph(fused)
    ((graph, reference),) = held
    assert graph == plain, "other precisions are made of operators that every tool knows"
    expected = embed_all(GraphSession(fused, twin.contract), rows)
    np.testing.assert_array_equal(reference.gate_embeddings, expected)


def detour(graph: bytes) -> bytes:
    """The graph with two large products that come to nothing."""
    opened = onnx.load_from_string(graph)
    last = next(node for node in opened.graph.node if "embedding" in node.output)
    last.output[:] = ["before" if name == "embedding" else name for name in last.output]
    for name, shape in (("wide", (DIMENSION, 100_000)), ("narrow", (100_000, DIMENSION))):
        zeros = np.zeros(shape, dtype=np.float32)
        opened.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))
    for operator, inputs, output in (
        ("MatMul", ["before", "wide"], "widened"),
        ("MatMul", ["widened", "narrow"], "nothing"),
        ("Add", ["before", "nothing"], "embedding"),
    ):
        opened.graph.node.append(onnx.helper.make_node(operator, inputs, [output]))
    return opened.SerializeToString()
