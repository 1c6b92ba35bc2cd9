"""EmbedStream over the wire: in order, with errors in their places, as Embed answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2
from google.rpc import error_details_pb2 as details

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve.client import Client
from twinserve.errors import UndecodableImage
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2

PIXELS, _ = twins.classes_of_pixels(4, 2)


def message(request_id: str, *inputs: shared_pb2.Input, **fields: object) -> pb.EmbedStreamRequest:
    request = pb.EmbedRequest(request_id=request_id, inputs=inputs, **fields)  # type: ignore[arg-type]
    return pb.EmbedStreamRequest(request=request)


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with server.channel() as channel:
        yield Stubs(channel)


def test_messages_are_answered_in_order_as_embed_answers_them(stubs: Stubs) -> None:
    inputs = [wire.tensor(PIXELS[i % len(PIXELS)]) for i in range(300)]
    sent = [message(str(i), one) for i, one in enumerate(inputs)]
    replies = list(stubs.embedding.EmbedStream(iter(sent), timeout=60))
    assert [reply.request_id for reply in replies] == [str(i) for i in range(300)]
    alone = stubs.embedding.Embed(pb.EmbedRequest(inputs=inputs[:8]))
    for reply, result in zip(replies[:8], alone.results, strict=True):
        assert np.allclose(
            reply.response.results[0].embedding.values, result.embedding.values, atol=1e-5
        )
        assert reply.response.request_id == reply.request_id
        assert reply.response.model_version == alone.model_version


def test_an_error_is_one_messages_reply_and_the_stream_goes_on(stubs: Stubs) -> None:
    fine = wire.tensor(PIXELS[0])
    sent = [
        message("fine", fine),
        message("empty"),
        message("undecodable", shared_pb2.Input(image=b"rubbish")),
        message("", fine),
        message("unknown", fine, model="nobody"),
        message("dimension", fine, options=pb.EmbedOptions(dimensions=5)),
        message("long" * 40, fine),
        message("part", fine, shared_pb2.Input(image=b"rubbish")),
        message("last", fine),
    ]
    replies = list(stubs.embedding.EmbedStream(iter(sent), timeout=60))
    assert [reply.request_id for reply in replies] == [one.request.request_id for one in sent]
    found = {reply.request_id: reply for reply in replies}
    for name, code, field in (
        ("empty", code_pb2.INVALID_ARGUMENT, "request.inputs"),
        ("undecodable", code_pb2.INVALID_ARGUMENT, "request.inputs[0].image"),
        ("", code_pb2.INVALID_ARGUMENT, "request.request_id"),
        ("unknown", code_pb2.NOT_FOUND, "request.model"),
        ("dimension", code_pb2.INVALID_ARGUMENT, "request.options.dimensions"),
        ("long" * 40, code_pb2.INVALID_ARGUMENT, "request.request_id"),
    ):
        assert found[name].error.code == code, name
        assert wire.field(found[name].error) == field
        assert len(found[name].error.message) > 20
    assert found["part"].response.results[1].error.code == code_pb2.INVALID_ARGUMENT
    for name in ("fine", "part", "last"):
        assert len(found[name].response.results[0].embedding.values) == 16


def test_a_request_id_must_not_repeat_one_that_waits(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path)
    pictures = [wire.image(PIXELS[i % len(PIXELS)]) for i in range(1024)]
    with server.channel() as channel:
        sent = [message("same", *pictures), message("same", wire.tensor(PIXELS[0]))]
        replies = list(Stubs(channel).embedding.EmbedStream(iter(sent), timeout=60))
    assert len(replies[0].response.results) == 1024
    assert replies[1].error.code == code_pb2.INVALID_ARGUMENT
    assert wire.field(replies[1].error) == "request.request_id"


def test_a_wrong_priority_refuses_the_stream(stubs: Stubs) -> None:
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        list(
            stubs.embedding.EmbedStream(
                iter([message("a", wire.tensor(PIXELS[0]))]),
                metadata=(("twinserve-priority", "urgent"),),
            )
        )
    assert wire.field(refused.status) == "twinserve-priority"


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_every_priority_is_served(stubs: Stubs, priority: str) -> None:
    call = stubs.embedding.Embed
    reply = call(
        pb.EmbedRequest(inputs=[wire.tensor(PIXELS[0])]),
        metadata=(("twinserve-priority", priority),),
    )
    assert len(reply.results) == 1


def test_more_than_the_server_has_room_for_waits_instead_of_being_refused(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path, "--max-rows", "2048")
    inputs = [wire.tensor(PIXELS[i % len(PIXELS)]) for i in range(1000)]
    for i, one in enumerate(inputs):
        # All different, so that each is a row.
        one.tensor.data = i.to_bytes(4, "big") + one.tensor.data[4:]
    with server.channel() as channel:
        sent = [message(str(i), *inputs) for i in range(12)]
        replies = list(Stubs(channel).embedding.EmbedStream(iter(sent), timeout=120))
    assert [len(reply.response.results) for reply in replies] == [1000] * 12


def test_sigterm_answers_what_was_read_and_sends_the_client_elsewhere(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path)
    go_on = threading.Event()

    def messages() -> Iterator[pb.EmbedStreamRequest]:
        yield message("first", wire.tensor(PIXELS[0]))
        go_on.wait(30)

    with server.channel() as channel:
        replies = Stubs(channel).embedding.EmbedStream(messages(), timeout=60)
        assert next(replies).request_id == "first"
        stopped: list[int] = []
        stopper = threading.Thread(target=lambda: stopped.append(server.stop()))
        stopper.start()
        with Refused(grpc.StatusCode.UNAVAILABLE):
            next(replies)
        go_on.set()
        stopper.join(30)
    assert stopped == [0]


def test_the_client_embeds_any_number_of_inputs_and_keeps_their_order(
    server: RunningServer,
) -> None:
    inputs: list[object] = [PIXELS[i % len(PIXELS)] for i in range(150)]
    inputs[70] = b"no picture"
    with Client(server.target) as client:
        parts = list(client.embed_stream(iter(inputs), batch=16))  # type: ignore[arg-type]
        alone = client.embed(PIXELS)
    assert [len(part) for part in parts] == [16] * 9 + [6]
    vectors = np.concatenate([part.vectors for part in parts])
    for i in range(150):
        if i == 70:
            assert isinstance(parts[70 // 16].errors[70 % 16], UndecodableImage)
        else:
            assert np.allclose(vectors[i], alone.vectors[i % len(PIXELS)], atol=1e-5)


def test_calls_above_the_limit_are_told_when_to_come_again(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path, "--max-calls", "1")
    go_on = threading.Event()

    def messages() -> Iterator[pb.EmbedStreamRequest]:
        yield message("inside", wire.tensor(PIXELS[0]))
        go_on.wait(30)

    with server.channel() as channel:
        stubs = Stubs(channel)
        replies = stubs.embedding.EmbedStream(messages(), timeout=60)
        assert next(replies).request_id == "inside"
        with Refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as refused:
            stubs.embedding.Embed(pb.EmbedRequest(inputs=[wire.tensor(PIXELS[0])]))
        assert wire.reason(refused.status) == "QUEUE_FULL"
        delay = wire.detail(refused.status, details.RetryInfo).retry_delay
        assert delay.ToTimedelta().total_seconds() > 0
        go_on.set()
        assert list(replies) == []
        assert server.stop() == 0
