"""Every unary RPC as JSON over HTTP: replies, errors and limits are those of gRPC."""

from __future__ import annotations

import http.client
import socket
import uuid
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_status import rpc_status

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.access_lines import line_of
from tests.server.gateway.asking import SERVICE, Answer, ask, call
from tests.server.gateway.conftest import MESSAGE_LIMIT
from tests.server.wire import Stubs
from twinserve.v1 import (
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_service_pb2,
    shared_pb2,
)
from twinserve.v1.embedding_service_pb2 import CompareRequest, EmbedRequest, EmbedResponse, Pair
from twinserve.v1.shared_pb2 import Input

METHODS: list[MethodDescriptor] = [
    method
    for file in (embedding_service_pb2, gallery_service_pb2, model_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
UNARY = [one for one in METHODS if not (one.client_streaming or one.server_streaming)]
STREAMS = [one for one in METHODS if one not in UNARY]
PIXELS, _ = twins.classes_of_pixels(3, 2)
# Errors tell the id of their call, where they tell one.
ID = "the-same"
METADATA = (("x-request-id", ID),)
COMPARE = "EmbeddingService/Compare"
EMBED = "EmbeddingService/Embed"


@pytest.fixture(scope="module")
def stubs(both: RunningServer) -> Iterator[Stubs]:
    with both.channel() as channel:
        yield Stubs(channel)


def without_timing(message: Message) -> Message:
    if "timing" in message.DESCRIPTOR.fields_by_name:
        message.ClearField("timing")
    return message


@pytest.mark.parametrize("method", UNARY, ids=lambda one: one.name)
def test_every_unary_rpc_says_the_same_of_an_empty_request(
    both: RunningServer, stubs: Stubs, method: MethodDescriptor
) -> None:
    request = message_factory.GetMessageClass(method.input_type)
    reply = message_factory.GetMessageClass(method.output_type)
    name = f"{method.containing_service.full_name}/{method.name}"
    by_http = ask(both, f"/{name}", "{}", X_Request_Id=ID)
    by_grpc = stubs.channel.unary_unary(
        f"/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=reply.FromString,
    )
    try:
        wanted = by_grpc(request(), metadata=METADATA)
    except grpc.RpcError as error:
        refusal = rpc_status.from_call(error)
    else:
        assert by_http.message(reply) == wanted
        return
    assert by_http.error() == refusal
    assert by_http.status in (400, 404, 501), by_http.body


def test_a_call_whose_items_all_failed_tells_of_each_as_by_grpc(
    both: RunningServer, stubs: Stubs
) -> None:
    request = EmbedRequest(model="pictures", inputs=[Input(), Input(text="a"), Input(image=b"no")])
    by_http = call(both, EMBED, request, X_Request_Id=ID)
    with wire.Refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        stubs.embedding.Embed(request, metadata=METADATA)
    assert len(refusal.status.details) > 3
    assert by_http.error() == refusal.status


@pytest.mark.parametrize("method", STREAMS, ids=lambda one: one.name)
def test_streams_are_for_grpc(both: RunningServer, method: MethodDescriptor) -> None:
    answer = ask(both, f"/{method.containing_service.full_name}/{method.name}", "{}")
    assert answer.status == 501
    assert "streams are for gRPC" in answer.error().message


def test_compare_and_embed_of_texts_and_pictures_answer_as_by_grpc(
    both: RunningServer, stubs: Stubs
) -> None:
    picture, other = (wire.image(PIXELS[i]) for i in (0, 2))
    for model, first, second in (
        ("texts", Input(text="word1 word2"), Input(text="word3", prompt="query")),
        ("pictures", picture, other),
    ):
        pairs = [Pair(first=first, second=second), Pair(first=first, second=first)]
        compare = CompareRequest(model=model, pairs=pairs, prior=0.25)
        by_http = call(both, COMPARE, compare).message(embedding_service_pb2.CompareResponse)
        assert by_http.timing.batch_rows
        assert without_timing(by_http) == without_timing(stubs.embedding.Compare(compare))

        embed = EmbedRequest(model=model, inputs=[first, Input(), second], request_id="one")
        got = call(both, EMBED, embed).message(EmbedResponse)
        assert without_timing(got) == without_timing(stubs.embedding.Embed(embed))
        # A ready vector goes back in as it came out.
        again = EmbedRequest(model=model, inputs=[Input(embedding=got.results[0].embedding)])
        ready = call(both, EMBED, again).message(EmbedResponse)
        assert ready.results[0].embedding == got.results[0].embedding


def test_items_are_enrolled_and_searched_for_as_by_grpc(both: RunningServer, stubs: Stubs) -> None:
    made = call(
        both,
        "GalleryService/CreateGallery",
        gallery_service_pb2.CreateGalleryRequest(
            gallery=gallery_pb2.Gallery(name="letters", model="pictures")
        ),
    )
    assert made.message(gallery_service_pb2.CreateGalleryResponse).gallery.name == "letters"
    items = [
        gallery_service_pb2.EnrollItem(
            item=shared_pb2.Item(id=f"item{i}", subject=f"subject{i // 2}"),
            input=wire.image(PIXELS[i]),
        )
        for i in range(4)
    ]
    enroll = gallery_service_pb2.EnrollRequest(
        gallery="letters", items=items, request_id=str(uuid.uuid4())
    )
    enrolled = call(both, "GalleryService/Enroll", enroll)
    # The same request again has its first answer again, whichever way each came.
    got = enrolled.message(gallery_service_pb2.EnrollResponse)
    assert without_timing(got) == without_timing(stubs.gallery.Enroll(enroll))

    search = gallery_service_pb2.SearchRequest(
        gallery="letters",
        probes=[wire.image(PIXELS[1]), Input(text="not a picture")],
        at_least=got.consistency_token,
        view=gallery_service_pb2.ITEM_VIEW_FULL,
    )
    found = call(both, "GalleryService/Search", search)
    hits = found.message(gallery_service_pb2.SearchResponse)
    assert hits.results[0].hits.hits[0].item.subject == "subject0"
    assert without_timing(hits) == without_timing(stubs.gallery.Search(search))


def test_more_inputs_and_larger_ones_than_the_loop_has_time_for_are_answered(
    both: RunningServer,
) -> None:
    inputs = [Input(text=f"word{i} word{i + 1}") for i in range(90)]
    answer = call(both, EMBED, EmbedRequest(model="texts", inputs=inputs, atomic=True))
    vectors = [one.embedding.values for one in answer.message(EmbedResponse).results]
    wanted = twins.embed_texts([one.text for one in inputs])
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_a_call_may_be_protobufs_bytes(both: RunningServer, stubs: Stubs) -> None:
    request = EmbedRequest(model="texts", inputs=[Input(text="word1")])
    answer = ask(both, SERVICE + EMBED, request.SerializeToString(), kind="application/proto")
    assert answer.headers["content-type"] == "application/proto"
    reply = EmbedResponse.FromString(answer.body)
    assert without_timing(reply) == without_timing(stubs.embedding.Embed(request))
    damaged = ask(both, SERVICE + EMBED, b"\xff\xff", kind="application/proto")
    assert (damaged.status, wire.reason(damaged.error())) == (400, "INVALID_INPUT")


def refused(answer: Answer, http_status: int, reason: str) -> str:
    """Check a refusal, and return its sentence."""
    assert answer.status == http_status, answer.body
    status = answer.error()
    assert wire.reason(status) == reason
    assert len(status.message) > 20
    return status.message


def test_bodies_that_are_not_what_they_should_be_are_refused_with_a_sentence(
    both: RunningServer,
) -> None:
    path = SERVICE + EMBED
    assert "no JSON" in refused(ask(both, path, "{"), 400, "INVALID_INPUT")
    assert "inptus" in refused(ask(both, path, '{"inptus": []}'), 400, "INVALID_INPUT")
    plain = ask(both, path, "{}", kind="text/plain")
    assert "application/json" in refused(plain, 415, "NOT_BUILT")
    packed = ask(both, path, b"\x1f\x8b", Content_Encoding="gzip")
    assert "identity" in refused(packed, 415, "NOT_BUILT")
    newer = ask(both, path, "{}", Connect_Protocol_Version="2")
    assert "version 1" in refused(newer, 400, "INVALID_INPUT")
    nothing = ask(both, SERVICE + "EmbeddingService/Embd", "{}")
    assert "no method" in refused(nothing, 404, "NOT_BUILT")
    assert ask(both, path, method="GET").status == 405


def test_a_body_over_the_limit_of_a_message_is_refused_by_its_announcement(
    both: RunningServer,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", both.http_port, timeout=30)
    connection.putrequest("POST", SERVICE + EMBED)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    reply = connection.getresponse()
    found = {name.lower(): value for name, value in reply.getheaders()}
    answer = Answer(reply.status, found, reply.read())
    connection.close()
    assert str(MESSAGE_LIMIT) in refused(answer, 413, "LIMIT_EXCEEDED")


def test_a_body_over_the_limit_that_announced_nothing_is_refused_too(both: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", both.http_port), timeout=30) as line:
        line.sendall(
            f"POST {SERVICE}{EMBED} HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"40000\r\n" + b" " * 0x40000 + b"\r\n"
        for _ in range(MESSAGE_LIMIT // 0x40000 + 1):
            line.sendall(chunk)
        assert line.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("Connect-Timeout-Ms", "soon", "whole milliseconds"),
        ("Connect-Timeout-Ms", "-1", "whole milliseconds"),
        ("Connect-Timeout-Ms", "12345678901", "whole milliseconds"),
        ("Connect-Timeout-Ms", "\u00b2", "whole milliseconds"),
        ("Twinserve-Priority", "urgent", "high, normal or low"),
        ("Twinserve-Priority", "\xff\xfe", "high, normal or low"),
    ],
)
def test_headers_that_make_no_sense_are_refused(
    both: RunningServer, name: str, value: str, says: str
) -> None:
    body = {"model": "texts", "inputs": [{"text": "word1"}]}
    answer = ask(both, SERVICE + EMBED, body, **{name: value})
    assert says in refused(answer, 400, "INVALID_INPUT")


def test_headers_without_end_are_refused_and_the_server_lives_on(both: RunningServer) -> None:
    body = '{"model": "texts", "inputs": [{"text": "word1"}]}'
    assert ask(both, SERVICE + EMBED, body, X_Long="x" * 100_000).status == 400
    many = {f"x-{i}": "x" for i in range(5000)}
    assert ask(both, SERVICE + EMBED, body, **many).status == 400
    with socket.create_connection(("127.0.0.1", both.http_port), timeout=30) as line:
        line.sendall(b"\x16\x03\x01\x02\x00" * 100 + b"\r\n\r\n")
        assert line.recv(12)[-4:] == b" 400"
    assert not any("Traceback" in line for line in both.errors)
    found = ask(both, SERVICE + EMBED, body, Twinserve_Priority="high", X_Ok="\xe9")
    assert found.status == 200


def test_a_deadline_that_has_passed_is_told(both: RunningServer) -> None:
    body = {"model": "texts", "inputs": [{"text": "word1"}]}
    late = ask(both, SERVICE + EMBED, body, Connect_Timeout_Ms="0")
    assert "allow more time" in refused(late, 504, "DEADLINE_EXCEEDED")
    assert ask(both, SERVICE + EMBED, body, Connect_Timeout_Ms="20000").status == 200


def test_pages_of_the_origin_that_was_named_may_call_and_others_may_not(
    both: RunningServer,
) -> None:
    asked = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type",
    }
    leave = ask(both, "/v1/embeddings", None, "OPTIONS", Origin="https://app.example", **asked)
    assert leave.status == 204
    assert leave.headers["access-control-allow-origin"] == "https://app.example"
    assert leave.headers["access-control-allow-headers"] == "authorization,content-type"
    refusal = ask(both, "/v1/embeddings", None, "OPTIONS", Origin="https://evil.example", **asked)
    assert refusal.status >= 400
    assert "access-control-allow-origin" not in refusal.headers
    reply = ask(both, "/v1/models", None, "GET", Origin="https://app.example")
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert reply.headers["vary"] == "Origin"
    assert reply.headers["server"] == "twinserve"


@pytest.mark.parametrize("path", [SERVICE + EMBED, "/v1/embeddings"])
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/plain; application/json",
        "text/plain;,application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
    ],
)
def test_what_a_page_may_send_without_asking_leave_is_not_taken(
    both: RunningServer, path: str, kind: str | None
) -> None:
    """A page of any site may send these types without a preflight (Fetch, CORS-safelisted)."""
    body = '{"model": "texts", "input": "a", "inputs": [{"text": "a"}]}'
    assert ask(both, path, body, kind=kind, Origin="https://evil.example").status == 415


def test_a_page_s_own_name_for_this_machine_is_refused(both: RunningServer) -> None:
    for path in ("/v1/models", "/metrics"):
        assert ask(both, path, None, "GET", Host="evil.example:9090").status == 421
    assert ask(both, "/healthz", None, "GET", Host="evil.example:9090").status == 200
    assert ask(both, "/v1/models", None, "GET", Host="localhost:1").status == 200


def test_a_body_that_is_none_has_a_line_in_the_log_under_the_id_that_its_client_sent(
    both: RunningServer,
) -> None:
    answer = ask(both, SERVICE + EMBED, "{", X_Request_Id="shop-42")
    assert answer.headers["x-request-id"] == "shop-42"
    line = line_of(both, "shop-42")
    assert (line["method"], line["reason"]) == ("Embed", "INVALID_INPUT")


def test_metrics_count_calls_by_http_with_those_by_grpc(both: RunningServer) -> None:
    def count(line: str) -> float:
        page = ask(both, "/metrics", None, "GET").body.decode()
        return sum(float(one.split()[-1]) for one in page.splitlines() if one.startswith(line))

    seen = 'twinserve_request_seconds_count{code="OK",method="Compare",model="texts"}'
    before, errors = count(seen), count('twinserve_rejections_total{reason="INVALID_INPUT"}')
    pair = Pair(first=Input(text="word1"), second=Input(text="word2"))
    assert call(both, COMPARE, CompareRequest(model="texts", pairs=[pair])).status == 200
    assert ask(both, SERVICE + COMPARE, "{").status == 400
    assert count(seen) == before + 1
    assert count('twinserve_rejections_total{reason="INVALID_INPUT"}') == errors + 1
