"""Requests that ask for more than anybody needs."""

from __future__ import annotations

import base64
import math

from tests.abuse.asking import alike, both, grpc_answer, http_answer
from tests.abuse.cases import theme
from tests.abuse.inputs import raw_grpc
from tests.abuse.victim import PIXELS, Victim
from tests.server import wire
from twinserve.v1 import embedding_service_pb2 as embedding
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1.shared_pb2 import (
    Clause,
    DecisionRule,
    Filter,
    FilterList,
    MetadataValue,
    ValueList,
)

case = theme("Sizes, counts and numbers")
PROBE = wire.tensor(PIXELS[0])
HUGE = (1 << 31) - 1


def search(victim: Victim, **asked: object) -> str:
    request = pb.SearchRequest(gallery="north-1", probes=[PROBE], **asked)  # type: ignore[arg-type]
    return both(victim, "gallery.Search", request)


@case(
    "a search for 2^31 - 1 hits, for -1",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def huge_k(victim: Victim) -> str:
    return alike(search(victim, top_k=k) for k in (HUGE, -1, 1001))


@case(
    "1,024 probes with 1,000 hits each",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def huge_product(victim: Victim) -> str:
    request = pb.SearchRequest(gallery="north-1", probes=[PROBE] * 1024, top_k=1000)
    return both(victim, "gallery.Search", request)


@case(
    "a batch of 1,025 inputs, of 20,000 empty ones",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def huge_batch(victim: Victim) -> str:
    found = []
    for one, json, count in ((PROBE, b'{"text":"x"}', 1025), (shared_pb2.Input(), b"{}", 20_000)):
        request = embedding.EmbedRequest(model="image", inputs=[one] * count)
        body = b'{"model":"image","inputs":[' + b",".join([json] * count) + b"]}"
        asked = http_answer(victim, "/twinserve.v1.EmbeddingService/Embed", body)
        found.append(f"{grpc_answer(victim, 'embedding.Embed', request)}; {asked}")
    return alike(found)


@case(
    "a message of 15 MB that is 7,500,000 empty inputs",
    "gRPC",
    "INVALID_ARGUMENT LIMIT_EXCEEDED",
    mib=1024,
    is_long=True,
)
def many_empty(victim: Victim) -> str:
    return raw_grpc(victim, b"\x0a\x05image" + b"\x12\0" * 7_500_000)


@case(
    "JSON of 15 MB that is 5,000,000 empty inputs",
    "HTTP",
    "400 INVALID_INPUT",
    mib=1024,
    is_long=True,
)
def many_empty_json(victim: Victim) -> str:
    body = b'{"model":"image","inputs":[' + b",".join([b"{}"] * 5_000_000) + b"]}"
    return http_answer(victim, "/twinserve.v1.EmbeddingService/Embed", body)


@case("a batch of none", "both", "INVALID_ARGUMENT EMPTY_INPUT; 400 EMPTY_INPUT")
def empty_batch(victim: Victim) -> str:
    return both(victim, "embedding.Embed", embedding.EmbedRequest(model="image"))


@case(
    "mean_of, ef, page_size of 2^31 - 1 and of -1",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def huge_numbers(victim: Victim) -> str:
    found = []
    for number in (HUGE, -1):
        found += [search(victim, mean_of=number), search(victim, ef=number)]
        request = pb.ListItemsRequest(gallery="north-1", page_size=number)
        found.append(both(victim, "gallery.ListItems", request))
    return alike(found)


@case(
    "a gallery with an index of 2^31 - 1 links, of -1 items",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def huge_index(victim: Victim) -> str:
    found = []
    for settings in (
        gallery_pb2.Gallery(hnsw=gallery_pb2.HnswConfig(m=HUGE)),
        gallery_pb2.Gallery(hnsw=gallery_pb2.HnswConfig(ef_construction=HUGE)),
        gallery_pb2.Gallery(max_items=-1),
        gallery_pb2.Gallery(max_bytes=-1),
    ):
        settings.name, settings.model = "north-9", "image"
        request = pb.CreateGalleryRequest(gallery=settings)
        found.append(both(victim, "gallery.CreateGallery", request))
    return alike(found)


@case(
    "a gallery that declares 2,000 metadata keys, one key of 10 KB",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def many_keys(victim: Victim) -> str:
    found = []
    for names in ([f"k{i}" for i in range(2000)], ["k" * 10_000]):
        keys = [gallery_pb2.MetadataKey(key=name, type=1) for name in names]  # type: ignore[arg-type]
        made = gallery_pb2.Gallery(name="north-9", model="image", metadata_keys=keys)
        found.append(both(victim, "gallery.CreateGallery", pb.CreateGalleryRequest(gallery=made)))
    return alike(found)


@case(
    "a threshold, a prior, a rate that is NaN, infinite, negative, above 1",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def no_rates(victim: Victim) -> str:
    found = []
    for number in (math.nan, math.inf, -1.0, 2.0):
        found.append(search(victim, rule=DecisionRule(false_accept_rate=number)))
        found.append(search(victim, rule=DecisionRule(false_positive_identification_rate=number)))
    for number in (math.nan, math.inf):
        found.append(search(victim, rule=DecisionRule(threshold=number)))
    found.append(search(victim, max_distance=math.nan))
    verify = pb.VerifyRequest(gallery="north-1", subject="north-1", probe=PROBE, prior=math.nan)
    found.append(both(victim, "gallery.Verify", verify))
    return alike(found)


def nested(depth: int) -> Filter:
    found = Filter(clause=Clause(key="note", exists=True))
    for _ in range(depth):
        outer = Filter()
        getattr(outer, "not").CopyFrom(found)
        found = outer
    return found


@case("a filter nested 17 deep", "both", "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED")
def deep_filter(victim: Victim) -> str:
    return search(victim, filter=nested(17))


@case(
    "a filter nested 10,000 deep (protobuf's own recursion)", "both", "INTERNAL; 400 INVALID_INPUT"
)
def deeper_filter(victim: Victim) -> str:
    data = b""
    for _ in range(10_000):
        data = b"\x22" + _varint(len(data)) + data  # Filter.not
    data = b"\x0a\x07north-1\x22" + _varint(len(data)) + data  # SearchRequest.filter
    text = b'{"gallery":"north-1","filter":' + b'{"not":' * 10_000 + b"{}" + b"}" * 10_001
    found = raw_grpc(victim, data, "GalleryService/Search")
    return f"{found}; {http_answer(victim, '/twinserve.v1.GalleryService/Search', text)}"


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


@case("a filter of 10,000 clauses", "gRPC", "INVALID_ARGUMENT INVALID_INPUT")
def wide_filter(victim: Victim) -> str:
    value = MetadataValue(text="x")
    clause = Filter(clause=Clause(key="note", equals=value))
    clauses = Filter(any=FilterList(filters=[clause] * 10_000))
    request = pb.SearchRequest(gallery="north-1", probes=[PROBE], filter=clauses)
    return grpc_answer(victim, "gallery.Search", request)


@case("a filter of one clause with 20,000 values (they are looked up in a set)", "gRPC", "OK")
def many_values(victim: Victim) -> str:
    values = ValueList(values=[MetadataValue(text="x")] * 20_000)
    clause = Filter(clause=Clause(key="note", any_of=values))
    request = pb.SearchRequest(gallery="north-1", probes=[PROBE], filter=clause)
    return grpc_answer(victim, "gallery.Search", request)


@case(
    "a filter on a key that is not declared, named like SQL",
    "both",
    "INVALID_ARGUMENT UNDECLARED_KEY; 400 UNDECLARED_KEY",
)
def undeclared(victim: Victim) -> str:
    keys = ("other", "note'; DROP TABLE items; --", "x" * 10_000)
    return alike(search(victim, filter=Filter(clause=Clause(key=key, exists=True))) for key in keys)


@case("values like SQL in subjects and filters (they are values)", "both", "OK; 200, 0 found")
def injected(victim: Victim) -> str:
    text = "' OR '1'='1"
    count = pb.CountItemsRequest(
        gallery="north-1", filter=Filter(clause=Clause(key="note", equals=MetadataValue(text=text)))
    )
    found = victim.stubs.gallery.CountItems(
        count, metadata=[("authorization", victim.bearer("north"))], timeout=5
    )
    remove = pb.RemoveRequest(gallery="north-1", subject=text)
    return f"{both(victim, 'gallery.Remove', remove)}, {found.item_count} found"


@case(
    "an item with 1 MB of metadata, with 2,000 keys",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def heavy_item(victim: Victim) -> str:
    found = []
    for values in ({"note": "x" * (1 << 20)}, {f"k{i}": "x" for i in range(2000)}):
        item = shared_pb2.Item(id="heavy", subject="heavy")
        for key, value in values.items():
            item.metadata[key].text = value
        request = pb.EnrollRequest(gallery="north-1", items=[pb.EnrollItem(item=item, input=PROBE)])
        found.append(both(victim, "gallery.Enroll", request))
    return alike(found)


@case("a subject of 1 MB", "both", "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED")
def long_subject(victim: Victim) -> str:
    item = shared_pb2.Item(id="long", subject="s" * (1 << 20))
    request = pb.EnrollRequest(gallery="north-1", items=[pb.EnrollItem(item=item, input=PROBE)])
    return both(victim, "gallery.Enroll", request)


@case("a page token made up", "both", "INVALID_ARGUMENT BAD_PAGE_TOKEN; 400 BAD_PAGE_TOKEN")
def forged_page(victim: Victim) -> str:
    tokens = ("AAAA", "rubbish!", "x" * 10_000)
    requests = (pb.ListItemsRequest(gallery="north-1", page_token=token) for token in tokens)
    return alike(both(victim, "gallery.ListItems", one) for one in requests)


@case(
    "a consistency token made up: rubbish, -1, of 10 KB",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def forged_token(victim: Victim) -> str:
    tokens = ("rubbish", "99999999999999999999", "-1", "x" * 10_000)
    requests = (pb.CountItemsRequest(gallery="north-1", at_least=token) for token in tokens)
    return alike(both(victim, "gallery.CountItems", one) for one in requests)


@case(
    "a consistency token of the future, made of a real one",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def future_token(victim: Victim) -> str:
    metadata = [("authorization", victim.bearer("ops"))]
    count = pb.CountItemsRequest(gallery="north-1")
    real = victim.stubs.gallery.CountItems(count, metadata=metadata).consistency_token
    state = bytearray(base64.urlsafe_b64decode(real + "=="))
    state[0] = 127  # the highest byte of the number that it is of
    later = pb.CountItemsRequest(
        gallery="north-1", at_least=base64.urlsafe_b64encode(state).decode().rstrip("=")
    )
    return both(victim, "gallery.CountItems", later)


@case(
    "a request_id used again with another body",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def reused_request_id(victim: Victim) -> str:
    def enroll(name: str) -> pb.EnrollRequest:
        item = shared_pb2.Item(id=name, subject="again")
        return pb.EnrollRequest(
            gallery="north-1", items=[pb.EnrollItem(item=item, input=PROBE)], request_id="once"
        )

    assert grpc_answer(victim, "gallery.Enroll", enroll("first")) == "OK"
    return both(victim, "gallery.Enroll", enroll("second"))


@case("a request_id of 1 MB", "both", "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED")
def long_request_id(victim: Victim) -> str:
    request = embedding.EmbedRequest(model="image", inputs=[PROBE], request_id="x" * (1 << 20))
    write = pb.RemoveRequest(gallery="north-1", subject="x", request_id="x" * (1 << 20))
    return alike([both(victim, "embedding.Embed", request), both(victim, "gallery.Remove", write)])


@case(
    "enum values, fields that there are none of",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def unknown_enum(victim: Victim) -> str:
    options = embedding.EmbedOptions(encoding=99)  # type: ignore[arg-type]
    request = embedding.EmbedRequest(model="image", inputs=[PROBE], options=options)
    return both(victim, "embedding.Embed", request)
