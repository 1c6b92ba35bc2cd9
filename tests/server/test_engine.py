"""The engine around a model of the test's own: driven, awaited, cancelled, refused, closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import twins
from tests.server.batching.test_batcher import Record
from tests.server.wire import png
from twinserve import manifest as manifests
from twinserve.errors import DeadlineExceeded, LimitExceeded, QueueFull, UndecodableImage
from twinserve.server.batching.admission import Admission
from twinserve.server.batching.batcher import Outputs, Rows
from twinserve.server.batching.costs import Measured
from twinserve.server.callers import Caller
from twinserve.server.completion import Driven, drive
from twinserve.server.config import Limits
from twinserve.server.engine import Embedded, Engine
from twinserve.server.inputs import Array, ImageBytes, RawInput, Ready, Text
from twinserve.tokens import Tokenizer

PIXELS, _ = twins.classes_of_pixels(4, 1)


@dataclass
class Ended:
    """What became of a driven call."""

    told: threading.Event = field(default_factory=threading.Event)
    value: Embedded | None = None
    error: BaseException | None = None
    thread: str = ""

    def __call__(self, value: Embedded | None, error: BaseException | None) -> None:
        self.value, self.error = value, error
        self.thread = threading.current_thread().name
        self.told.set()

    def wait(self) -> Embedded:
        assert self.told.wait(10)
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return self.value


class Model:
    """Embeds as the small twins do, each run once the test lets it; its own admission beside it."""

    def __init__(self, twin: bytes, folder: Path) -> None:
        path = folder / "twin.onnx"
        path.write_bytes(twin)
        self.manifest = manifests.read(path)
        text = manifests.read_tokenizer(path)
        contract = self.manifest.input
        self.tokenizer = (
            Tokenizer(text, contract)
            if text and isinstance(contract, manifests.TextInput)
            else None
        )
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.runs: list[int] = []
        self.admission = Admission(4096, lambda: 0.01)
        self.preparers = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self.engines: list[Engine] = []

    def run(self, rows: Rows) -> Outputs:
        self.runs.append(len(rows))
        self.begun.release()
        assert self.gate.wait(10)
        if self.tokenizer is not None:
            return np.array([[len(row)] * self.manifest.dimension for row in rows], np.float32)
        return twins.embed_pixels(np.stack(rows))

    def engine(self, **settings: Any) -> Engine:
        runner: Any = SimpleNamespace(
            manifest=self.manifest, tokenizer=self.tokenizer, run=self.run, run_lone=None
        )
        given: dict[str, Any] = {
            "admission": self.admission,
            "preparers": self.preparers,
            "preparer_count": 2,
            "observer": Record(),
            "limits": Limits(),
            "max_batch": 64,
            "max_batch_tokens": 2048,
            "runners": 1,
        }
        self.engines.append(Engine(runner, "held", **(given | settings)))
        return self.engines[-1]

    def close(self) -> None:
        self.gate.set()
        for engine in self.engines:
            asyncio.run(engine.close())
        self.preparers.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    made = Model(twins.small_image_twin(), tmp_path)
    yield made
    made.close()


@pytest.fixture
def texts(tmp_path: Path) -> Iterator[Model]:
    made = Model(twins.small_text_twin(), tmp_path)
    yield made
    made.close()


def driven(
    engine: Engine, raws: list[RawInput], caller: Caller | None = None
) -> tuple[Ended, Driven[Embedded]]:
    ended = Ended()
    return ended, drive(engine.embed(raws, caller or Caller("a")), ended)


def array(place: int = 0) -> Array:
    return Array(PIXELS[place])


def picture(place: int = 0) -> ImageBytes:
    return ImageBytes(png(PIXELS[place]))


@pytest.mark.parametrize("raws", [[array(0), array(1)], [picture(0), picture(1), picture(2)]])
def test_a_call_goes_on_without_a_loop_and_ends_in_the_thread_that_ran_the_model(
    model: Model, raws: list[RawInput]
) -> None:
    ended, _ = driven(model.engine(), raws)
    outcomes = ended.wait().outcomes
    expected = twins.embed_pixels(PIXELS[: len(raws)])
    np.testing.assert_allclose(np.stack(outcomes), expected, rtol=1e-5)  # type: ignore[arg-type]
    assert ended.thread.startswith("run-held")


def test_the_same_call_may_be_awaited_on_a_loop(model: Model) -> None:
    engine = model.engine()

    async def main() -> list[Embedded]:
        calls = (engine.embed([picture(i % 4), array()], Caller("a")) for i in range(20))
        return await asyncio.gather(*calls)

    for i, embedded in enumerate(asyncio.run(main())):
        expected = twins.embed_pixels(PIXELS[[i % 4, 0]])
        np.testing.assert_allclose(np.stack(embedded.outcomes), expected, rtol=1e-5)  # type: ignore[arg-type]


def test_an_input_that_cannot_be_used_fails_alone_in_its_place(model: Model) -> None:
    ended, _ = driven(model.engine(), [picture(0), ImageBytes(b"no picture"), array(1)])
    outcomes = ended.wait().outcomes
    assert isinstance(outcomes[1], UndecodableImage)
    assert isinstance(outcomes[0], np.ndarray)
    assert isinstance(outcomes[2], np.ndarray)
    assert model.runs == [2]


def test_a_call_given_up_while_it_waits_costs_no_run_and_holds_no_place(model: Model) -> None:
    engine = model.engine()
    model.gate.clear()
    first, _ = driven(engine, [array(0)])
    assert model.begun.acquire(timeout=10)
    second, running = driven(engine, [array(1), array(2)])
    assert model.admission.rows == 3
    running.abandon()
    with pytest.raises(asyncio.CancelledError):
        second.wait()
    assert model.admission.rows == 1
    model.gate.set()
    first.wait()
    assert model.runs == [1]
    assert model.admission.rows == 0


def test_a_call_given_up_while_it_is_prepared_is_not_prepared_to_its_end(model: Model) -> None:
    engine = model.engine()
    held = threading.Event()
    for _ in range(2):
        model.preparers.submit(held.wait, 10)
    ended, running = driven(engine, [picture(i % 4) for i in range(50)])
    assert not ended.told.is_set()
    running.abandon()
    with pytest.raises(asyncio.CancelledError):
        ended.wait()
    held.set()
    assert model.admission.rows == 0
    engine.batcher.close()
    assert model.runs == []


def test_a_full_server_refuses_before_anything_is_decoded(model: Model) -> None:
    model.admission = Admission(4, lambda: 0.01)
    engine = model.engine()
    model.gate.clear()
    first, _ = driven(engine, [array(i) for i in range(3)])
    refused, _ = driven(engine, [ImageBytes(b"no picture")] * 2, Caller("b"))
    with pytest.raises(QueueFull):
        refused.wait()
    large, _ = driven(engine, [array(0)] * 5, Caller("b"))
    with pytest.raises(LimitExceeded):
        large.wait()
    model.gate.set()
    first.wait()
    assert model.admission.rows == 0


def test_a_deadline_that_the_table_rules_out_is_refused_before_anything_is_decoded(
    model: Model,
) -> None:
    engine = model.engine(measured=[Measured(1, 1, 100.0), Measured(64, 1, 6400.0)])
    clock = engine.batcher._clock
    late, _ = driven(engine, [ImageBytes(b"no picture")], Caller("a", deadline=clock() + 30))
    with pytest.raises(DeadlineExceeded, match="needs at least 50"):
        late.wait()
    assert model.admission.rows == 0
    driven(engine, [array()], Caller("a", deadline=clock() + 60))[0].wait()


def test_a_ready_vector_is_refused_for_no_deadline_since_it_needs_no_run(model: Model) -> None:
    engine = model.engine(measured=[Measured(1, 1, 100.0), Measured(64, 1, 6400.0)])
    ready = Ready(driven(engine, [array()])[0].wait().outcomes[0], model.manifest.space_id)
    soon = Caller("a", deadline=engine.batcher._clock() + 30)
    assert driven(engine, [ready], soon)[0].wait().errors == {}
    assert model.runs == [1]
    with pytest.raises(DeadlineExceeded):
        driven(engine, [ready, array()], soon)[0].wait()


def test_texts_count_by_their_tokens_once_these_are_known(texts: Model) -> None:
    engine = texts.engine()
    texts.gate.clear()
    ended, _ = driven(engine, [Text("word1 word2"), Text("word3")])
    assert texts.admission.rows == 2
    texts.gate.set()
    assert ended.wait().token_counts[1] < ended.wait().token_counts[0]


def test_close_lets_calls_end_and_ends_the_threads_and_may_be_called_again(model: Model) -> None:
    engine = model.engine()
    model.gate.clear()
    calls = [driven(engine, [array(i % 4)], Caller(str(i)))[0] for i in range(8)]
    assert model.begun.acquire(timeout=10)
    closing = threading.Thread(target=lambda: asyncio.run(engine.close()))
    closing.start()
    model.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    for call in calls:
        call.wait()
    asyncio.run(engine.close())
    assert not [t for t in threading.enumerate() if t.name.startswith("run-held")]
