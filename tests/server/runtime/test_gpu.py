"""Buckets, bindings and CUDA graphs, against a card that is made up; and on a real one if there."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from tests import twins
from tests.server.fake_runtime import DIMENSION, Card, Part
from twinserve.errors import ProviderUnavailable
from twinserve.feed import Row
from twinserve.manifest import ImageInput, TensorInput, TextInput
from twinserve.server.runtime import providers
from twinserve.server.runtime.buckets import Bucket, Buckets, buckets_of, tensorrt_profile
from twinserve.server.runtime.gpu import WARM_RUNS, GpuRunning, open_on_card, padded
from twinserve.server.runtime.planning import Setting, Spinning
from twinserve.server.runtime.providers import CPU, CUDA, TENSORRT, Device, Runtime
from twinserve.server.runtime.runner import Runner
from twinserve.server.runtime.sessions import SHORT_SPIN, open_session

PATH = Path("twin.onnx")
CARD = Device(CUDA, {"device_id": "1"})
VECTORS = TensorInput((3,))
TEXTS = TextInput(max_tokens=48, pad_id=7)
WHOLE = [Part(CUDA, ["Conv", "Gemm"])]


def vectors(count: int) -> list[Row]:
    return [np.full(3, 10.0 + place, np.float32) for place in range(count)]


def running(
    card: Card, contract: TensorInput | TextInput = VECTORS, runners: int = 1, max_batch: int = 6
) -> GpuRunning:
    opened = open_on_card(PATH, CARD, Setting(runners, 1), card)
    return GpuRunning(
        opened, contract, DIMENSION, CARD, card, buckets_of(contract, max_batch, 128), runners
    )


def test_rows_are_rounded_up_to_powers_of_two_and_the_largest_batch() -> None:
    buckets = Buckets(max_batch=6, max_tokens=100)
    assert [buckets.of(rows, 1).rows for rows in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 4, 6, 6]
    assert [bucket.rows for bucket in buckets.usual()] == [6, 4, 2, 1]


def test_lengths_are_rounded_up_in_half_steps_to_the_longest_text() -> None:
    buckets = Buckets(4, 64, longest=100)
    assert [buckets.of(1, n).length for n in (1, 16, 17, 25, 48, 50, 97, 100)] == [
        16, 16, 24, 32, 48, 64, 100, 100,
    ]  # fmt: skip


def test_shapes_beyond_the_most_tokens_are_not_made_ready_save_a_single_long_text() -> None:
    usual = Buckets(4, 64, longest=100).usual()
    assert Bucket(4, 16) in usual
    assert Bucket(4, 24) not in usual
    assert Bucket(1, 100) in usual
    assert max(usual, key=lambda one: one.cells) == usual[0]


def test_a_batch_fills_its_bucket_with_copies_of_its_first_row() -> None:
    texts = [np.array([3, 4, 5]), np.array([6])]
    laid = padded(texts, TEXTS, Bucket(4, 5))
    np.testing.assert_array_equal(
        laid["input_ids"],
        [[3, 4, 5, 7, 7], [6, 7, 7, 7, 7], [3, 4, 5, 7, 7], [3, 4, 5, 7, 7]],
    )
    np.testing.assert_array_equal(
        laid["attention_mask"], [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    )


def test_only_the_callers_rows_come_back() -> None:
    card = Card(CUDA, parts=WHOLE)
    for count in (1, 3, 5, 6):
        found = running(card).run(vectors(count))
        np.testing.assert_array_equal(found, [[10 + i] * DIMENSION for i in range(count)])


def test_buffers_are_bound_once_a_bucket_on_the_card_that_was_asked_for() -> None:
    card = Card(CUDA, parts=WHOLE)
    twin = running(card)
    for count in (3, 4, 3, 4):
        twin.run(vectors(count))
    (session,) = card.sessions
    (binding,) = session.bindings
    assert binding.inputs["tensor"].device == 1
    assert binding.output is not None
    assert binding.output.device == 1


def test_each_usual_bucket_is_recorded_under_an_id_of_its_own_and_replayed() -> None:
    card = Card(CUDA, parts=WHOLE)
    twin = running(card)
    twin.prepare()
    (session,) = card.sessions
    assert session.chain[0][1]["enable_cuda_graph"] == "1"
    assert twin.recorded == 4
    ids = {
        shape[0]: {graph for s, graph in session.runs if s == shape} for shape, _ in session.runs
    }
    # One run as ever, then those that record, under one id a bucket.
    assert all(len(found) == 2 and -1 in found for found in ids.values())
    assert len(set().union(*ids.values())) == 5
    before = len(session.runs)
    twin.run(vectors(3))
    assert session.runs[before:] == [((4, 3), max(ids[4]))]
    assert sum(graph == max(ids[4]) for _, graph in session.runs) == WARM_RUNS + 1


def test_a_shape_that_nobody_prepared_runs_without_recording() -> None:
    card = Card(CUDA, parts=WHOLE)
    twin = running(card)
    twin.prepare()
    twin.run(vectors(9))
    assert card.sessions[0].runs[-1] == ((9, 3), -1)


def test_a_graph_that_cannot_be_recorded_runs_as_ever_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = Card(CUDA, parts=WHOLE, whole=False)
    with caplog.at_level(logging.WARNING):
        twin = running(card)
    twin.prepare()
    assert twin.recorded == 0
    assert "no CUDA graphs: not all compute graph nodes" in caplog.text
    (session,) = card.sessions
    assert not session.graphs
    np.testing.assert_array_equal(twin.run(vectors(2)), [[10] * DIMENSION, [11] * DIMENSION])


def test_a_bucket_that_fails_to_record_leaves_the_others_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = Card(CUDA, parts=WHOLE, refuses=lambda number: number == 2)
    twin = running(card)
    with caplog.at_level(logging.WARNING):
        twin.prepare()
    assert twin.recorded == 3
    assert "no CUDA graph for 4 rows" in caplog.text
    np.testing.assert_array_equal(twin.run(vectors(4))[3], [13] * DIMENSION)


def test_several_runs_at_a_time_have_buffers_of_their_own_and_no_graphs() -> None:
    card = Card(CUDA, parts=WHOLE)
    twin = running(card, runners=2)
    twin.prepare()
    (session,) = card.sessions
    assert not session.graphs
    assert len(session.bindings) == 2 * 4
    wrong: list[int] = []

    def ask(value: int) -> None:
        for _ in range(50):
            found = twin.run([np.full(3, value, np.float32)])
            if found[0, 0] != value:
                wrong.append(value)

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_graphs_can_be_turned_off_with_a_provider_option() -> None:
    card = Card(CUDA, parts=WHOLE)
    device = Device(CUDA, {"device_id": "0", "enable_cuda_graph": "0"})
    opened = open_on_card(PATH, device, Setting(1, 1), card)
    assert not opened.graphs
    assert "enable_cuda_graph=0" in opened.why


def test_nodes_on_the_cpu_are_told_and_refused_where_that_was_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = Card(CUDA, parts=[Part(CUDA, ["Conv"] * 3), Part(CPU, ["Gather"])])
    with caplog.at_level(logging.WARNING):
        open_session(PATH, CARD, Setting(1, 1), card)
    assert "cuda:1 runs 75 % of the nodes, the CPU the rest (1 Gather)" in caplog.text
    with pytest.raises(ProviderUnavailable, match=r"would run 1 nodes .*1 Gather"):
        open_session(PATH, CARD, Setting(1, 1), card, strict=True)
    open_session(PATH, CARD, Setting(1, 1), Card(CUDA, parts=WHOLE), strict=True)


def test_strictness_without_a_record_is_refused_rather_than_believed() -> None:
    with pytest.raises(ProviderUnavailable, match="says who runs which node"):
        open_session(PATH, CARD, Setting(1, 1), Card(CUDA, parts=None), strict=True)


@pytest.mark.parametrize(
    ("how", "entries"),
    [
        (Spinning.OFF, {"session.intra_op.allow_spinning": "0"}),
        (
            Spinning.SHORT,
            {
                "session.intra_op.allow_spinning": "1",
                "session.intra_op.spin_duration_us": str(SHORT_SPIN),
            },
        ),
        (Spinning.ON, {"session.intra_op.allow_spinning": "1"}),
    ],
)
def test_a_session_spins_as_its_setting_says(how: Spinning, entries: dict[str, str]) -> None:
    card = Card()
    open_session(PATH, Device(CPU, {}), Setting(1, 3, how), card)
    assert card.sessions[0].entries == entries
    assert card.sessions[0].threads == 3


def test_a_session_that_fell_back_in_silence_is_refused() -> None:
    with pytest.raises(ProviderUnavailable, match="CPUExecutionProvider only"):
        open_session(PATH, CARD, Setting(1, 1), Card())


def test_tensorrt_is_told_the_least_usual_and_largest_shapes() -> None:
    picture = ImageInput(8, 9, 3, "RGB")
    assert tensorrt_profile(picture, buckets_of(picture, 64, 1)) == {
        "trt_profile_min_shapes": "image:1x8x9x3",
        "trt_profile_opt_shapes": "image:16x8x9x3",
        "trt_profile_max_shapes": "image:64x8x9x3",
    }
    texts = tensorrt_profile(TEXTS, buckets_of(TEXTS, 8, 4096))
    assert texts["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert texts["trt_profile_opt_shapes"] == "input_ids:2x32,attention_mask:2x32"
    assert texts["trt_profile_max_shapes"] == "input_ids:8x48,attention_mask:8x48"


def test_tensorrt_runs_its_engine_and_records_nothing() -> None:
    card = Card(TENSORRT, CUDA, parts=[Part(TENSORRT, ["Conv"])])
    device = Device(TENSORRT, {"device_id": "0"}, {"device_id": "0"})
    opened = open_on_card(PATH, device, Setting(1, 1), card, options={"trt_fp16_enable": "1"})
    assert not opened.graphs
    assert [name for name, _ in card.sessions[0].chain] == [TENSORRT, CUDA, CPU]
    assert card.sessions[0].chain[0][1]["trt_fp16_enable"] == "1"


def on_made_up_card(
    folder: Path, card: Card, device: Device = CARD, *, strict: bool = False
) -> Runner:
    path = folder / "vectors.onnx"
    path.write_bytes(twins.small_tensor_twin())
    return Runner(path, device, strict=strict, library=card)


def test_a_twin_on_a_card_is_warmed_in_its_buckets_and_told_with_its_share(tmp_path: Path) -> None:
    card = Card(CUDA, parts=[Part(CUDA, ["MatMul"] * 3), Part(CPU, ["Shape"])])
    runner = on_made_up_card(tmp_path, card)
    measured = runner.warm(8, 64)
    assert runner.device_share == 0.75
    assert runner.cuda_graph_shapes == 4
    assert runner.plan.runners == 1, "CUDA graphs are not shared"
    assert {one.rows for one in measured} == {1, 2, 4, 8}
    found = runner.run([np.full(8, value, np.float32) for value in (1, 2, 3)])
    np.testing.assert_array_equal(found, [[1] * 16, [2] * 16, [3] * 16])
    with pytest.raises(ProviderUnavailable, match="--strict-device"):
        on_made_up_card(tmp_path, card, strict=True)


def test_tensorrt_is_opened_for_the_shapes_that_the_server_runs(tmp_path: Path) -> None:
    card = Card(TENSORRT, CUDA, parts=[Part(TENSORRT, ["MatMul"])])
    device = Device(TENSORRT, {"device_id": "0"}, {"device_id": "0"})
    runner = on_made_up_card(tmp_path, card, device)
    runner.warm(8, 64)
    assert card.sessions[-1].chain[0][1]["trt_profile_max_shapes"] == "tensor:8x8"
    assert runner.cuda_graph_shapes == 0


@pytest.fixture(scope="session")
def real_card() -> Device:
    """A card that onnxruntime runs on here."""
    reason = providers.missing(Runtime.installed(), CUDA)
    if reason is not None:
        pytest.skip(f"no CUDA here: {reason}")
    return providers.choose("cuda", Runtime.installed())


@pytest.mark.parametrize("graphs", ["1", "0"])
def test_a_real_card_gives_what_the_cpu_gives(
    real_card: Device, tmp_path: Path, graphs: str
) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(twins.small_image_twin(calibrated=False))
    device = Device(
        CUDA, {**real_card.options, **({} if graphs == "1" else {"enable_cuda_graph": "0"})}
    )
    runner = Runner(path, device, strict=True)
    runner.warm(16, 1024)
    assert runner.device_share == 1.0
    pixels, _ = twins.classes_of_pixels(5, 5)
    for count in (1, 3, 16, 25):
        np.testing.assert_allclose(
            runner.run(list(pixels[:count])), twins.embed_pixels(pixels[:count]), atol=2e-2
        )


def test_a_real_card_pads_texts_without_a_change_of_their_vectors(
    real_card: Device, tmp_path: Path
) -> None:
    path = tmp_path / "texts.onnx"
    path.write_bytes(twins.small_text_twin(calibrated=False))
    runner = Runner(path, real_card)
    runner.warm(8, 256)
    generator = np.random.default_rng(2)
    rows = [generator.integers(4, len(twins.vocabulary()), n) for n in (3, 9, 1, 16, 5)]
    expected = [twins.word_table()[row].mean(axis=0) for row in rows]
    np.testing.assert_allclose(runner.run(rows), expected, atol=1e-3)
