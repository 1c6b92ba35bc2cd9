"""An integrator's error is found in the operator's log by its request id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.access_lines import line_of, lines_of
from tests.server.wire import Stubs
from twinserve.server.gate import Gate
from twinserve.server.request_ids import request_id_in, request_id_of
from twinserve.server.security.access import Access
from twinserve.server.services.calls import status_of_failure
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as gs

(PIXELS,) = twins.classes_of_pixels(1, 1)[0]
SECRETS = ("Bearer s3cret-key", "s3cret-name")


@pytest.fixture(scope="module")
def server(twin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that writes down every call, and all else that it could say."""
    data = tmp_path_factory.mktemp("data")
    flags = ["--access-log", "1", "--log-level", "debug", "--runners", "1", "--threads", "1"]
    running = conftest.start("--model", twin_file, "--data-dir", data, *flags)
    yield running
    if running.process.poll() is None:
        running.kill()


def id_in(error: grpc.RpcError) -> str:
    """The request id in a failed call's ErrorInfo."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    found: str = info.metadata["request_id"]
    return found


def test_a_call_is_logged_under_the_id_that_its_caller_gave(server: RunningServer) -> None:
    with server.channel() as channel:
        request = pb.EmbedRequest(inputs=[wire.tensor(PIXELS)] * 2)
        sent = (("x-request-id", "shop-42/7"), ("authorization", SECRETS[0]))
        Stubs(channel).embedding.Embed(request, metadata=sent)
    line = line_of(server, "shop-42/7")
    assert (line["method"], line["code"], line["model"]) == ("Embed", "OK", "small")
    assert (line["items"], line["request_bytes"]) == (2, request.ByteSize())
    assert 0 < line["inference_ms"] < line["ms"]
    assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_a_failed_call_names_its_id_to_the_caller_and_in_the_log(server: RunningServer) -> None:
    with server.channel() as channel:
        request = pb.EmbedRequest(inputs=[shared_pb2.Input(image=b"no picture")])
        for sent in ((), (("x-request-id", 'forged"} line'),), (("x-request-id", "mine"),)):
            with pytest.raises(grpc.RpcError) as caught:
                Stubs(channel).embedding.Embed(request, metadata=sent)
            found = id_in(caught.value)
            assert (found == "mine") == (sent == (("x-request-id", "mine"),))
            line = line_of(server, found)
            assert (line["code"], line["reason"]) == ("INVALID_ARGUMENT", "IMAGE_UNDECODABLE")
        missing = gs.ExportItemsRequest(gallery="none")
        with pytest.raises(grpc.RpcError) as caught:
            list(Stubs(channel).gallery.ExportItems(missing))
        line = line_of(server, id_in(caught.value))
        assert (line["method"], line["reason"]) == ("ExportItems", "GALLERY_NOT_FOUND")


def test_each_message_of_a_stream_is_a_call_under_the_streams_id(server: RunningServer) -> None:
    messages = [
        pb.EmbedStreamRequest(
            request=pb.EmbedRequest(request_id=str(i), inputs=[wire.tensor(PIXELS)] * (i + 1))
        )
        for i in range(3)
    ]
    with server.channel() as channel:
        stub = Stubs(channel).embedding
        list(stub.EmbedStream(iter(messages), metadata=(("x-request-id", "stream-1"),)))
    found = lines_of(server, "stream-1", 3)
    assert sorted(one["items"] for one in found) == [1, 2, 3]


def test_calls_of_galleries_say_what_the_gallery_took(server: RunningServer) -> None:
    one = wire.tensor(PIXELS)
    compare = pb.CompareRequest()
    compare.pairs.add(first=one, second=one)
    settings = gallery_pb2.Gallery(name="seen", model="small")
    entry = gs.EnrollItem(item=shared_pb2.Item(id="a", subject="ann"), input=one)
    with server.channel() as channel:
        stub = Stubs(channel)
        stub.gallery.CreateGallery(gs.CreateGalleryRequest(gallery=settings))
        calls: dict[str, tuple[Any, Any]] = {
            "Compare": (stub.embedding.Compare, compare),
            "Enroll": (stub.gallery.Enroll, gs.EnrollRequest(gallery="seen", items=[entry])),
            "Search": (stub.gallery.Search, gs.SearchRequest(gallery="seen", probes=[one])),
            "Verify": (
                stub.gallery.Verify,
                gs.VerifyRequest(gallery="seen", subject="ann", probe=one),
            ),
        }
        for name, (call, request) in calls.items():
            call(request, metadata=(("x-request-id", name),))
    for name in calls:
        line = line_of(server, name)
        assert (line["method"], line["items"]) == (name, 1)
        assert line["reply_bytes"] > 10
        assert line["inference_ms"] > 0
        assert (line["search_ms"] > 0) == (name != "Compare"), name
    assert not [one for one in server.errors if "could not be written down" in one]


def test_nothing_secret_and_nothing_of_the_inputs_is_in_the_log(server: RunningServer) -> None:
    with server.channel() as channel:
        wrong = pb.EmbedRequest(inputs=[shared_pb2.Input(text=SECRETS[1])])
        with pytest.raises(grpc.RpcError):
            Stubs(channel).embedding.Embed(wrong, metadata=(("x-request-id", "last"),))
    line_of(server, "last")
    log = "".join(server.errors)
    for secret in SECRETS:
        assert secret not in log


def test_ids_that_could_forge_or_fill_a_log_are_replaced() -> None:
    for usable in ("a", "0af7651916cd43dd8448eb211c80319c", "a:b/c@d+e=f.g_h-i", "x" * 128):
        assert request_id_in((("x-request-id", usable),)) == usable
    for odd in ("", "x" * 129, "a b", 'a"b', "a\nb", "ä"):
        made = request_id_in((("x-request-id", odd),))
        assert made != odd
        assert len(made) == 32
    assert request_id_in(()) != request_id_in(())


def test_a_calls_id_stays_the_same() -> None:
    class Context:
        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return ()

    context = Context()
    assert request_id_of(context) == request_id_of(context)


def test_a_fault_of_the_server_names_its_id_to_the_caller_and_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Context:
        access = Access("key-7")

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("x-request-id", "shop-42"),)

    class Servicer:
        metrics = Metrics()
        gate = Gate()

    context: Any = Context()
    status = status_of_failure(Servicer(), "Embed", ValueError("broken"), context)
    assert status.message.endswith("its log says why, under request id shop-42")
    (line,) = caplog.records
    assert line.exc_info is not None
    facts = vars(line)
    assert (facts["request_id"], facts["method"], facts["key"]) == ("shop-42", "Embed", "key-7")
