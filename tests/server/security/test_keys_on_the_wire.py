"""A server with keys: who gets in, what each key reaches, and changes while it serves."""

from __future__ import annotations

import os
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests import twins
from tests.server import wire
from tests.server.security.guarded import Guarded, refusal
from tests.server.wire import Stubs
from twinserve.errors import ClientOverShare, PermissionDenied, Unauthenticated
from twinserve.oip import inference_pb2, inference_pb2_grpc
from twinserve.server.security import keys
from twinserve.server.security.access import Role
from twinserve.v1 import embedding_service_pb2, gallery_pb2, model_service_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

PIXELS, _ = twins.classes_of_pixels(2, 2)
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def stubs(guarded: Guarded) -> Iterator[Stubs]:
    with guarded.server.channel() as channel:
        yield Stubs(channel)


def embed() -> embedding_service_pb2.EmbedRequest:
    return embedding_service_pb2.EmbedRequest(inputs=[wire.tensor(PIXELS[0])])


@pytest.mark.parametrize("name", ["", "tws_reader_" + "A" * 43, "tws_nobody_x", "old"])
def test_without_a_valid_key_nothing_is_answered(guarded: Guarded, stubs: Stubs, name: str) -> None:
    metadata = guarded.metadata(name)
    for call, request in (
        (stubs.embedding.Embed, embed()),
        (stubs.gallery.ListGalleries, pb.ListGalleriesRequest()),
        (stubs.gallery.ExportItems, pb.ExportItemsRequest(gallery="north-1")),
        (stubs.embedding.EmbedStream, iter(())),
        (stubs.gallery.EnrollStream, iter(())),
        (stubs.model.ListModels, model_service_pb2.ListModelsRequest()),
        (
            inference_pb2_grpc.GRPCInferenceServiceStub(stubs.channel).ServerLive,
            inference_pb2.ServerLiveRequest(),
        ),
        (
            reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo,
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
        ),
    ):
        status = refusal(call, request, metadata)
        assert status.code == CODE.UNAUTHENTICATED.value[0]
        assert wire.reason(status) == "UNAUTHENTICATED"
        assert not name or name not in status.message or name == "old"


def test_health_is_open_on_both_ports(guarded: Guarded, stubs: Stubs) -> None:
    health = health_pb2_grpc.HealthStub(stubs.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == 1
    assert next(iter(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))).status == 1
    for path in ("/healthz", "/readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{guarded.server.http_port}{path}") as reply:
            assert reply.status == 200


def test_a_method_that_is_not_there_says_nothing_to_whom_has_no_key(stubs: Stubs) -> None:
    call = stubs.channel.unary_unary("/twinserve.v1.EmbeddingService/Nothing")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"")
    assert refused.value.code() is CODE.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("name", "call", "request_", "allowed"),
    [
        ("reader", "Enroll", pb.EnrollRequest(gallery="north-1"), False),
        ("reader", "Remove", pb.RemoveRequest(gallery="north-1"), False),
        ("writer", "Enroll", pb.EnrollRequest(gallery="north-1"), True),
        ("writer", "DeleteGallery", pb.DeleteGalleryRequest(name="gone"), False),
        ("ops", "DeleteGallery", pb.DeleteGalleryRequest(name="gone"), True),
        ("north", "BackupGalleries", pb.BackupGalleriesRequest(folder="x"), False),
        ("ops", "BackupGalleries", pb.BackupGalleriesRequest(folder="../x"), True),
    ],
)
def test_a_role_allows_its_own_and_no_more(
    guarded: Guarded, stubs: Stubs, name: str, call: str, request_: Any, allowed: bool
) -> None:
    # Each of them fails; what it fails with says whether it was let in.
    status = refusal(getattr(stubs.gallery, call), request_, guarded.metadata(name))
    assert (wire.reason(status) == "PERMISSION_DENIED") is not allowed
    if not allowed:
        assert status.code == CODE.PERMISSION_DENIED.value[0]


def test_a_stream_asks_for_its_role_before_it_is_read(guarded: Guarded, stubs: Stubs) -> None:
    request = pb.EnrollRequest(gallery="north-1", items=[pb.EnrollItem()])
    status = refusal(stubs.gallery.EnrollStream, iter([request]), guarded.metadata("reader"))
    assert wire.reason(status) == "PERMISSION_DENIED"


def calls_that_name(gallery: str) -> dict[str, Any]:
    item = pb.EnrollItem(item=shared_pb2.Item(id="x"), input=wire.tensor(PIXELS[0]))
    return {
        "GetGallery": pb.GetGalleryRequest(name=gallery),
        "CreateGallery": pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name=gallery)),
        "DeleteGallery": pb.DeleteGalleryRequest(name=gallery),
        "SetGalleryAlias": pb.SetGalleryAliasRequest(alias="north-x", gallery=gallery),
        "DeleteGalleryAlias": pb.DeleteGalleryAliasRequest(alias=gallery),
        "Enroll": pb.EnrollRequest(gallery=gallery, items=[item]),
        "EnrollStream": iter([pb.EnrollRequest(gallery=gallery, items=[item])]),
        "Remove": pb.RemoveRequest(gallery=gallery, subject="s"),
        "MoveItems": pb.MoveItemsRequest(gallery=gallery, subject="s"),
        "RenameSubject": pb.RenameSubjectRequest(gallery=gallery, subject="a", new_subject="b"),
        "CountItems": pb.CountItemsRequest(gallery=gallery),
        "ExportItems": pb.ExportItemsRequest(gallery=gallery),
        "GetItem": pb.GetItemRequest(gallery=gallery, id="first"),
        "ListItems": pb.ListItemsRequest(gallery=gallery),
        "Search": pb.SearchRequest(gallery=gallery, probes=[wire.tensor(PIXELS[0])]),
        "Verify": pb.VerifyRequest(gallery=gallery, subject="s", probe=wire.tensor(PIXELS[0])),
    }


def test_a_gallery_of_another_key_and_one_that_is_not_there_are_refused_alike(
    guarded: Guarded, stubs: Stubs
) -> None:
    methods = {m.name for m in pb.DESCRIPTOR.services_by_name["GalleryService"].methods}
    assert set(calls_that_name("x")) == methods - {"ListGalleries", "BackupGalleries"}
    # Else every call would be told apart by an id of its own.
    metadata = (*guarded.metadata("north"), ("x-request-id", "one"))
    for call in calls_that_name("x"):
        said = []
        # There, not there, and an alias that is reached of a gallery that is not.
        for gallery in ("south-1", "south-9", "shared"):
            request = calls_that_name(gallery)[call]
            status = refusal(getattr(stubs.gallery, call), request, metadata)
            assert wire.reason(status) == "PERMISSION_DENIED", (call, gallery)
            assert "south-1" not in str(status) or gallery == "south-1"
            said.append(status.SerializeToString().replace(gallery.encode(), b""))
        assert said[0] == said[1], call


def test_an_alias_may_not_be_moved_away_from_a_gallery_out_of_reach(
    guarded: Guarded, stubs: Stubs
) -> None:
    request = pb.SetGalleryAliasRequest(alias="shared", gallery="north-1")
    status = refusal(stubs.gallery.SetGalleryAlias, request, guarded.metadata("north"))
    assert wire.reason(status) == "PERMISSION_DENIED"
    assert "south-1" not in str(status)


def test_a_key_finds_its_own_galleries_and_aliases_alone(guarded: Guarded, stubs: Stubs) -> None:
    with guarded.client("north") as north, guarded.client("south") as south:
        assert [(g.name, tuple(g.aliases)) for g in north.list_galleries()] == [
            ("north-1", ("north-live",))
        ]
        # The alias `shared` stands for it, and is not of this key.
        assert [(g.name, tuple(g.aliases)) for g in south.list_galleries()] == [("south-1", ())]
        assert south.get_gallery("south-1").item_count == 1
        (hits,) = north.search("north-live", [PIXELS[0]]).checked()
        assert [hit.subject for hit in hits] == ["north-1"]
        north.create_gallery("north-2")
        page = stubs.gallery.ListGalleries(
            pb.ListGalleriesRequest(page_size=1), metadata=guarded.metadata("north")
        )
        assert [g.name for g in page.galleries] == ["north-1"]
        page = stubs.gallery.ListGalleries(
            pb.ListGalleriesRequest(page_size=1, page_token=page.next_page_token),
            metadata=guarded.metadata("north"),
        )
        assert [g.name for g in page.galleries] == ["north-2"]
        assert not page.next_page_token
        north.delete_gallery("north-2")


def test_over_its_rate_a_key_hears_when_to_come_back(guarded: Guarded, stubs: Stubs) -> None:
    metadata = guarded.metadata("slow")
    for _ in range(2):
        stubs.embedding.Embed(embed(), metadata=metadata)
    status = refusal(stubs.embedding.Embed, embed(), metadata)
    assert status.code == CODE.RESOURCE_EXHAUSTED.value[0]
    assert wire.reason(status) == "CLIENT_OVER_SHARE"
    delay = wire.detail(status, details.RetryInfo).retry_delay.ToMilliseconds()
    assert 3000 < delay <= 5050
    stubs.embedding.Embed(embed(), metadata=guarded.metadata("reader"))  # others are not held up


def test_messages_of_a_stream_wait_for_the_rate_of_their_key(
    guarded: Guarded, stubs: Stubs
) -> None:
    guarded.make("paced", Role.READ, rate=10, burst=3)
    guarded.reload()
    requests = [
        embedding_service_pb2.EmbedStreamRequest(
            request=embedding_service_pb2.EmbedRequest(
                inputs=[wire.tensor(PIXELS[0])], request_id=str(number)
            )
        )
        for number in range(6)
    ]
    began = time.monotonic()
    metadata = guarded.metadata("paced")
    replies = list(stubs.embedding.EmbedStream(iter(requests), metadata=metadata, timeout=20))
    assert [reply.request_id for reply in replies] == [str(number) for number in range(6)]
    assert not any(reply.HasField("error") for reply in replies)
    # Opening and two messages are the burst; four messages wait a tenth of a second each.
    assert 0.35 < time.monotonic() - began < 10


def test_the_client_raises_what_the_door_refused_with(guarded: Guarded) -> None:
    with guarded.client("reader") as client:
        with pytest.raises(PermissionDenied, match="has the role read"):
            client.delete_gallery("north-1")
        assert client.embed([PIXELS[0]]).vectors.shape == (1, 16)
    with guarded.client("nothing") as client, pytest.raises(Unauthenticated):
        client.embed([PIXELS[0]])
    guarded.make("rare", Role.READ, rate=0.01, burst=1)
    guarded.reload()
    with guarded.client("rare") as client:
        client.embed([PIXELS[0]])
        # A hundred seconds to the next call are more than this client waits.
        with pytest.raises(ClientOverShare) as refused:
            client.embed([PIXELS[0]])
        assert refused.value.retry_after is not None


def test_keys_are_added_and_revoked_without_a_restart(guarded: Guarded, stubs: Stubs) -> None:
    guarded.make("late", Role.READ)
    guarded.reload()
    stubs.embedding.Embed(embed(), metadata=guarded.metadata("late"))
    keys.revoke(guarded.path, "late")
    guarded.reload()
    status = refusal(stubs.embedding.Embed, embed(), guarded.metadata("late"))
    assert wire.reason(status) == "UNAUTHENTICATED"


def test_a_stream_that_is_open_ends_with_its_key(guarded: Guarded, stubs: Stubs) -> None:
    guarded.make("brief", Role.WRITE)
    guarded.reload()
    asked: queue.Queue[Any] = queue.Queue()
    messages = iter(asked.get, None)
    enrolling = stubs.gallery.EnrollStream(messages, metadata=guarded.metadata("brief"))
    item = pb.EnrollItem(item=shared_pb2.Item(id="brief"), input=wire.tensor(PIXELS[0]))
    request = pb.EnrollRequest(gallery="south-1", items=[item])
    asked.put(request)
    assert next(enrolling).results[0].WhichOneof("result") == "enrolled"
    keys.revoke(guarded.path, "brief")
    guarded.reload()
    asked.put(request)
    with pytest.raises(grpc.RpcError) as refused:
        next(enrolling)
    asked.put(None)
    assert refused.value.code() is CODE.UNAUTHENTICATED


def test_a_bad_file_keeps_the_keys_and_is_logged(guarded: Guarded, stubs: Stubs) -> None:
    text = guarded.path.read_text()
    guarded.path.write_text(text + "\n[[key]]\nid = 'half")
    guarded.reload()
    said = [line for line in guarded.server.errors if '"level":"error"' in line]
    assert "the keys that were read before stay valid" in said[-1]
    stubs.embedding.Embed(embed(), metadata=guarded.metadata("reader"))
    away = guarded.path.with_suffix(".away")
    os.replace(guarded.path, away)
    guarded.reload()
    assert "cannot be read" in guarded.server.errors[-1]
    stubs.embedding.Embed(embed(), metadata=guarded.metadata("reader"))
    away.write_text(text)
    os.replace(away, guarded.path)
    guarded.reload()


def test_refused_calls_are_counted_by_reason(guarded: Guarded, stubs: Stubs) -> None:
    refusal(stubs.embedding.Embed, embed(), ())
    request = urllib.request.Request(
        f"http://127.0.0.1:{guarded.server.http_port}/metrics",
        headers={"Authorization": f"Bearer {guarded.keys['reader']}"},
    )
    with urllib.request.urlopen(request) as reply:
        text = reply.read().decode()
    for reason in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CLIENT_OVER_SHARE"):
        (line,) = (
            line
            for line in text.splitlines()
            if line.startswith(f'twinserve_refused_calls_total{{reason="{reason}"}}')
        )
        assert float(line.split()[1]) >= 1, line


def test_metrics_ask_for_a_key(guarded: Guarded) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{guarded.server.http_port}/metrics")
    with refused.value as answer:
        assert answer.code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_vectors_are_those_of_a_server_without_keys(guarded: Guarded, stubs: Stubs) -> None:
    reply = stubs.embedding.Embed(embed(), metadata=guarded.metadata("reader"))
    wanted = twins.embed_pixels(PIXELS[:1])
    np.testing.assert_allclose([reply.results[0].embedding.values], wanted, atol=1e-5)
