"""A tenant who wants what is another's: galleries, aliases, items, lists."""

from __future__ import annotations

import grpc

from tests.abuse.asking import alike, both, grpc_answer, http_reply
from tests.abuse.cases import theme
from tests.abuse.victim import PIXELS, Victim
from tests.server import wire
from twinserve.server import paging
from twinserve.v1 import gallery_service_pb2 as pb

case = theme("Other tenants")
PROBE = wire.tensor(PIXELS[0])


@case(
    "searches, reads, exports another's gallery, or one that is not there: both the same",
    "both",
    "PERMISSION_DENIED; 403 PERMISSION_DENIED",
)
def other_gallery(victim: Victim) -> str:
    found = []
    for name in ("south-1", "south-none"):
        found += [
            both(
                victim,
                "gallery.Search",
                pb.SearchRequest(gallery=name, probes=[PROBE]),
                key="north",
            ),
            both(victim, "gallery.GetGallery", pb.GetGalleryRequest(name=name), key="north"),
            both(
                victim, "gallery.GetItem", pb.GetItemRequest(gallery=name, id="item-0"), key="north"
            ),
        ]
        export = pb.ExportItemsRequest(gallery=name)
        assert grpc_answer(victim, "gallery.ExportItems", export, key="north") in found[-1]
    return alike(found)


@case(
    "another's gallery by an alias that the key reaches",
    "both",
    "PERMISSION_DENIED; 403 PERMISSION_DENIED",
)
def by_alias(victim: Victim) -> str:
    request = pb.SearchRequest(gallery="shared", probes=[PROBE])
    return both(victim, "gallery.Search", request, key="north")


@case(
    "takes another's alias, or points an alias of its own at another's gallery",
    "both",
    "PERMISSION_DENIED; 403 PERMISSION_DENIED",
)
def takes_alias(victim: Victim) -> str:
    requests = [
        pb.SetGalleryAliasRequest(alias="south-live", gallery="north-1"),
        pb.SetGalleryAliasRequest(alias="north-live", gallery="south-1"),
    ]
    return alike(both(victim, "gallery.SetGalleryAlias", one, key="north") for one in requests)


@case(
    "lists galleries, also with a page token made up to begin right before another's",
    "both",
    "OK; 200: its own alone",
)
def lists(victim: Victim) -> str:
    token = paging.encode(b"galleries", "south-0")
    metadata = [("authorization", victim.bearer("north"))]
    request = pb.ListGalleriesRequest(page_token=token)
    assert not victim.stubs.gallery.ListGalleries(request, metadata=metadata).galleries
    return _listed(victim, pb.ListGalleriesRequest())


@case(
    "lists galleries with the page token of another list, or with rubbish",
    "both",
    "INVALID_ARGUMENT BAD_PAGE_TOKEN; 400 BAD_PAGE_TOKEN",
)
def forged_page(victim: Victim) -> str:
    tokens = [paging.encode(b"other", "south-0"), paging.encode(b"", "a"), "AAAA", "é" * 500]
    found = []
    for token in tokens:
        request = pb.ListGalleriesRequest(page_token=token)
        found.append(both(victim, "gallery.ListGalleries", request, key="north"))
    return alike(found)


def _listed(victim: Victim, request: pb.ListGalleriesRequest) -> str:
    metadata = [("authorization", victim.bearer("north"))]
    reply = victim.stubs.gallery.ListGalleries(request, metadata=metadata, timeout=5)
    names = {one.name for one in reply.galleries} | {a for g in reply.galleries for a in g.aliases}
    status, _, body = http_reply(
        victim, "/twinserve.v1.GalleryService/ListGalleries", b"{}", key="north"
    )
    assert b"south" not in body
    assert b"north-1" in body
    return f"OK; {status}: {'its own alone' if names == {'north-1'} else names}"


@case(
    "changes gallery in the middle of a stream",
    "gRPC",
    "PERMISSION_DENIED; in the other gallery: NOT_FOUND ITEM_NOT_FOUND",
)
def changes_gallery(victim: Victim) -> str:
    items = [pb.EnrollItem(input=PROBE)]
    items[0].item.id = "intruder"
    messages = [pb.EnrollRequest(gallery=one, items=items) for one in ("north-1", "south-1")]
    stream = victim.stubs.gallery.EnrollStream(
        iter(messages), metadata=[("authorization", victim.bearer("north"))], timeout=5
    )
    try:
        list(stream)
        found = "OK"
    except grpc.RpcError as error:
        found = error.code().name
    there = pb.GetItemRequest(gallery="south-1", id="intruder")
    return f"{found}; in the other gallery: {grpc_answer(victim, 'gallery.GetItem', there)}"
