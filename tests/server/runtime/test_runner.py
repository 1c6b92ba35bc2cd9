"""Twins that a server must not serve, each refused with a sentence; and those that it serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import twins
from twinserve import manifest as manifests
from twinserve.errors import ManifestError
from twinserve.manifest import ImageInput, TextInput
from twinserve.server.runtime import machine
from twinserve.server.runtime.planning import Asked, Plan, Setting
from twinserve.server.runtime.providers import CPU, Device
from twinserve.server.runtime.runner import Runner
from twinserve.server.runtime.sessions import Onnxruntime, Session
from twinserve.tokens import digest


def load(path: Path, twin: bytes) -> Runner:
    path.write_bytes(twin)
    return Runner(path, Device(CPU, {}), Asked(1, 1))


def warmed(path: Path, twin: bytes) -> Runner:
    runner = load(path, twin)
    runner.warm(16, 64)
    return runner


def edited(twin: bytes, edit: Callable[[onnx.ModelProto], None]) -> bytes:
    """A twin with another graph, and a manifest that vouches for it."""
    model = onnx.load_model_from_string(twin)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    edit(model)
    data = model.SerializeToString(deterministic=True)
    manifest = manifests.Manifest.from_json(entries[manifests.KEY])
    manifest = replace(manifest, graph_digest=manifests.digest_of_graph(data))
    return manifests.attach(data, manifest, entries.get(manifests.TOKENIZER_KEY))


def with_contract(twin: bytes, tokenizer: str | None, **changed: object) -> bytes:
    """A twin whose manifest says something else of its input."""
    model = onnx.load_model_from_string(twin)
    text = next(entry.value for entry in model.metadata_props if entry.key == manifests.KEY)
    manifest = manifests.Manifest.from_json(text)
    return manifests.attach(
        twin,
        replace(manifest, input=replace(manifest.input, **changed)),  # type: ignore[arg-type]
        tokenizer,
    )


@pytest.mark.parametrize("lengths", [[5], [3, 9, 1, 16], [16] * 7])
def test_a_text_twin_gives_each_row_what_it_gives_alone(tmp_path: Path, lengths: list[int]) -> None:
    runner = warmed(tmp_path / "texts.onnx", twins.small_text_twin())
    generator = np.random.default_rng(2)
    rows = [generator.integers(4, len(twins.vocabulary()), n) for n in lengths]
    together = runner.run(rows)
    alone = np.concatenate([runner.run([row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    expected = [twins.word_table()[row].mean(axis=0) for row in rows]
    np.testing.assert_allclose(together, expected, atol=1e-5)


def test_a_text_twin_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    twin = with_contract(twins.small_text_twin(calibrated=False), None)
    with pytest.raises(ManifestError, match="text twin without a tokenizer"):
        load(tmp_path / "texts.onnx", twin)


def test_a_tokenizer_other_than_the_manifests_is_refused(tmp_path: Path) -> None:
    other = twins.text_tokenizer({**twins.vocabulary(), "new": len(twins.vocabulary())})
    twin = with_contract(twins.small_text_twin(calibrated=False), other)
    with pytest.raises(ManifestError, match="not the one that the manifest describes"):
        load(tmp_path / "texts.onnx", twin)
    agreed = with_contract(twin, other, tokenizer_digest=digest(other))
    with pytest.raises(ManifestError, match=f"the id {len(twins.vocabulary())} "):
        warmed(tmp_path / "texts.onnx", agreed)


def test_a_table_too_short_for_the_tokenizers_ids_is_refused(tmp_path: Path) -> None:
    rows = len(twins.vocabulary()) - 1
    twin = twins.small_text_twin(calibrated=False, rows=rows)
    with pytest.raises(ManifestError, match=f"does not fit its graph, .* id {rows} "):
        warmed(tmp_path / "texts.onnx", twin)


def test_a_padding_id_outside_the_table_is_refused(tmp_path: Path) -> None:
    twin = twins.small_text_twin(calibrated=False, pad_id=9999)
    with pytest.raises(ManifestError, match="id 9999"):
        warmed(tmp_path / "texts.onnx", twin)


def test_inputs_that_the_manifest_does_not_name_are_refused(tmp_path: Path) -> None:
    tokenizer = twins.text_tokenizer()
    twin = with_contract(
        twins.small_text_twin(calibrated=False), tokenizer, inputs=("input_ids", "token_type_ids")
    )
    with pytest.raises(ManifestError, match="input_ids, token_type_ids of"):
        load(tmp_path / "texts.onnx", twin)
    listed = twins.small_text_twin(
        calibrated=False, inputs=("input_ids", "attention_mask", "token_type_ids")
    )
    assert isinstance(warmed(tmp_path / "texts.onnx", listed).manifest.input, TextInput)


@pytest.mark.parametrize(("axis", "what"), [(0, "batch"), (1, "length")])
def test_a_graph_that_fixes_an_axis_of_the_calls_is_refused(
    tmp_path: Path, axis: int, what: str
) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for one in model.graph.input:
            one.type.tensor_type.shape.dim[axis].dim_value = 4

    twin = edited(twins.small_text_twin(calibrated=False), fix)
    with pytest.raises(ManifestError, match=f"fixes the {what} of input_ids at 4"):
        load(tmp_path / "texts.onnx", twin)


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info("scaled", 1, None))


def half_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "full"
    model.graph.node.append(onnx.helper.make_node("Cast", ["full"], ["embedding"], to=10))
    model.graph.output[0].type.tensor_type.elem_type = 10


def other_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (second_output, "a twin has one, named embedding"),
        (half_output, "float16.*; a twin gives tensor.float."),
        (other_name, "pixels.*; its manifest says image of tensor.uint8."),
    ],
)
def test_a_graph_unlike_its_manifest_is_refused(
    tmp_path: Path, edit: Callable[[onnx.ModelProto], None], says: str
) -> None:
    with pytest.raises(ManifestError, match=says):
        load(tmp_path / "twin.onnx", edited(twins.small_image_twin(calibrated=False), edit))


def test_a_picture_twin_that_cannot_run_its_own_size_is_refused(tmp_path: Path) -> None:
    twin = with_contract(twins.small_image_twin(calibrated=False), None, height=14)
    with pytest.raises(ManifestError, match=r"does not run on a batch of 1, shape \[14, 28, 1\]"):
        warmed(tmp_path / "twin.onnx", twin)


def test_a_picture_twin_takes_a_batch_as_it_is(tmp_path: Path) -> None:
    runner = warmed(tmp_path / "twin.onnx", twins.small_image_twin(calibrated=False))
    assert isinstance(runner.manifest.input, ImageInput)
    assert runner.tokenizer is None
    pixels, _ = twins.classes_of_pixels(3, 2)
    np.testing.assert_allclose(runner.run(pixels), twins.embed_pixels(pixels), atol=1e-5)


def test_a_twin_is_planned_and_warmed_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    runner = Runner(path, Device(CPU, {}), processors=2)
    began = time.monotonic()
    measured = runner.warm(64, 2048)
    assert time.monotonic() - began < 20, "a few tenths of it on a machine of its own"
    plan = runner.plan  # such a net is nearly free, unless the machine is busy
    assert (plan.runners, plan.threads) in {(1, 1), (1, 2), (2, 1)}, "both processors at most"
    assert runner.plan.trials, "nothing was compared"
    assert {one.rows for one in measured} >= {1, 64}
    assert all(one.seconds > 0 and one.longest == 1 for one in measured)


def test_the_plan_of_the_version_before_is_taken_over_unmeasured(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    before = Plan(Setting(3, 1), "measured once")
    runner = Runner(path, Device(CPU, {}), processors=2, like=before)
    runner.warm(8, 64)
    assert runner.plan == before


def test_lone_runs_have_a_session_of_their_own_where_the_plan_says_so(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    pixels, _ = twins.classes_of_pixels(3, 2)
    library = CountingLibrary()
    before = Plan(Setting(2, 1), "measured once", lone=Setting(1, 2))
    runner = Runner(path, Device(CPU, {}), processors=2, like=before, library=library)
    runner.warm(8, 64)
    assert sorted(library.threads) == [1, 2]
    assert runner.run_lone is not None
    for run in (runner.run, runner.run_lone):
        np.testing.assert_allclose(run(pixels), twins.embed_pixels(pixels), atol=1e-5)
    runner.close()


def test_a_large_twin_is_in_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    monkeypatch.setattr("twinserve.server.runtime.runner.LONE_BYTES", path.stat().st_size - 1)
    before = Plan(Setting(2, 1), "measured once", lone=Setting(1, 2))
    library = CountingLibrary()
    runner = Runner(path, Device(CPU, {}), processors=2, like=before, library=library)
    runner.warm(8, 64)
    assert library.threads == [1]
    assert runner.run_lone is None


def test_costs_of_texts_are_told_by_rows_and_length(tmp_path: Path) -> None:
    path = tmp_path / "texts.onnx"
    path.write_bytes(twins.small_text_twin(calibrated=False))
    runner = Runner(path, Device(CPU, {}), Asked(1, 1))
    measured = {(one.rows, one.longest) for one in runner.warm(16, 64)}
    # The longest texts of this twin have 16 tokens: four of them are 64 tokens.
    assert {(1, 8), (8, 8), (1, 16), (4, 16)} <= measured
    assert all(rows * length <= 64 for rows, length in measured)


def test_closing_gives_the_memory_of_a_twin_back(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(edited(twins.small_image_twin(calibrated=False), add_weights))
    machine.give_back_memory()  # what making the file left
    before = machine.resident()
    runner = Runner(path, Device(CPU, {}), Asked(1, 1))
    runner.warm(4, 64)
    held = machine.resident() - before
    assert held > WEIGHTS, "the weights are in memory"
    runner.close()
    assert machine.resident() - before < held / 2


class CountingLibrary(Onnxruntime):
    """Notes with how many threads sessions were opened."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def session(self, path: Path, entries: Any, threads: int, chain: Any) -> Any:
        self.threads.append(threads)
        return super().session(path, entries, threads, chain)


class SlowSession:
    """Takes a third of a second for a run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.rows: list[int] = []

    def run(self, names: list[str], feed: Any, options: Any = None) -> list[Any]:
        self.rows.append(len(next(iter(feed.values()))))
        time.sleep(0.34)
        return self._session.run(names, feed, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class SlowLibrary(Onnxruntime):
    opened: SlowSession

    def session(self, *arguments: Any) -> Any:
        self.opened = SlowSession(super().session(*arguments))
        return self.opened


def test_a_slow_twin_is_not_warmed_with_its_largest_batches(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    library = SlowLibrary()
    runner = Runner(path, Device(CPU, {}), Asked(1, 1), library=library)
    measured = runner.warm(1024, 2048)
    # By a single row's time two seconds hold five rows, and the table ends after a second.
    assert max(library.opened.rows) <= 64
    assert [one.rows for one in measured][:3] in ([1, 5, 1], [1, 4, 1], [1, 3, 1], [1, 2, 1])


WEIGHTS = 48 << 20


def add_weights(model: onnx.ModelProto) -> None:
    """48 MB that the graph needs, and that change nothing: products with them, times zero.

    In pieces of 48 KB, which the C library keeps for itself when they are freed.
    """
    generator = np.random.default_rng(1)
    width = (48 << 10) // 4 // twins.DIMENSION
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    model.graph.node[-1].output[0] = "plain"
    model.graph.initializer.append(tensor(np.zeros(1, np.float32), "zero"))
    model.graph.initializer.append(tensor(np.array([1], np.int64), "axes"))
    means = []
    for place in range(WEIGHTS // (48 << 10)):
        wide = generator.standard_normal((twins.DIMENSION, width)).astype(np.float32)
        model.graph.initializer.append(tensor(wide, f"wide{place}"))
        means.append(f"mean{place}")
        model.graph.node.append(node("MatMul", ["plain", f"wide{place}"], [f"product{place}"]))
        model.graph.node.append(node("ReduceMean", [f"product{place}", "axes"], [means[-1]]))
    model.graph.node.extend(
        [
            node("Sum", means, ["mean"]),
            node("Mul", ["mean", "zero"], ["nothing"]),
            node("Add", ["plain", "nothing"], ["embedding"]),
        ]
    )
