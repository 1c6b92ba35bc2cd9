"""Callers without a key, with a wrong one, and with one that may do less."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2 as details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.abuse.asking import (
    FRESH,
    alike,
    both,
    grpc_answer,
    grpc_status,
    http_answer,
    http_reply,
    mirror,
    worded,
)
from tests.abuse.cases import theme
from tests.abuse.victim import SOUND, Victim
from twinserve.v1 import gallery_pb2, model_service_pb2
from twinserve.v1 import gallery_service_pb2 as pb

case = theme("Keys")
EMBED = "embedding.Embed"


@case("no key", "both", "UNAUTHENTICATED; 401 UNAUTHENTICATED")
def no_key(victim: Victim) -> str:
    return both(victim, EMBED, SOUND, key="")


@case(
    "a key that is unknown: a wrong secret, an unknown id, half a key",
    "both",
    "UNAUTHENTICATED; 401 UNAUTHENTICATED",
)
def unknown_key(victim: Victim) -> str:
    good = victim.guarded.keys["ops"]
    wrong = ("tws_ops_" + "A" * 43, "tws_nobody_" + "A" * 43, good[:-1], good + "A", "tws_ops_")
    return alike(both(victim, EMBED, SOUND, key=key) for key in wrong)


@case(
    "a malformed authorization: another scheme, no scheme, the key twice",
    "both",
    "UNAUTHENTICATED; 401 UNAUTHENTICATED",
)
def malformed(victim: Victim) -> str:
    good = victim.guarded.keys["ops"]
    found = []
    for value in (f"Basic {good}", good, "Bearer", "", f"Bearer {good},{good}", "Bearer " * 50):
        sent = [("authorization", value)]
        found.append(both_with(victim, sent))
    return alike(found)


@case("two authorizations, of which one is valid", "both", "UNAUTHENTICATED; 401 UNAUTHENTICATED")
def two_keys(victim: Victim) -> str:
    good, bad = victim.bearer("ops"), "Bearer tws_ops_x"
    orders = ([good, bad], [bad, good])
    return alike(both_with(victim, [("authorization", one) for one in order]) for order in orders)


def both_with(victim: Victim, headers: list[tuple[str, str]]) -> str:
    lower = [(name.lower(), value) for name, value in headers]
    asked = grpc_answer(victim, EMBED, SOUND, key="", metadata=lower)
    return f"{asked}; {mirror(victim, EMBED, SOUND, key='', headers=headers)}"


@case(
    "a key that has expired, and one that was revoked",
    "both",
    "UNAUTHENTICATED; 401 UNAUTHENTICATED",
)
def ended_key(victim: Victim) -> str:
    return alike(both(victim, EMBED, SOUND, key=key) for key in ("old", "gone"))


@case("the key in the URL, or in another header", "HTTP", "401 UNAUTHENTICATED")
def key_elsewhere(victim: Victim) -> str:
    good = victim.guarded.keys["ops"]
    body = b'{"model":"text","input":"word1"}'
    return alike(
        (
            http_answer(victim, f"/v1/embeddings?key={good}&api_key={good}", body, key=""),
            http_answer(victim, "/v1/embeddings", body, key="", headers=[("x-api-key", good)]),
            http_answer(victim, "/v1/embeddings", body, key="", headers=[("Cookie", f"k={good}")]),
        )
    )


@case("100 guesses on one connection", "gRPC", "UNAUTHENTICATED")
def guesses(victim: Victim) -> str:
    lines = len(victim.guarded.server.errors)
    found = alike(
        grpc_answer(victim, EMBED, SOUND, key=f"tws_ops_{number:043}") for number in range(100)
    )
    assert len(victim.guarded.server.errors) - lines < 20, "nobody may fill the log"
    return found


@case("writes with a key that may read", "both", "PERMISSION_DENIED; 403 PERMISSION_DENIED")
def reader_writes(victim: Victim) -> str:
    request = pb.RemoveRequest(gallery="north-1", subject="north-1")
    return both(victim, "gallery.Remove", request, key="reader")


@case(
    "deletes a gallery, loads a model with a key that may write",
    "both",
    "PERMISSION_DENIED; 403 PERMISSION_DENIED",
)
def writer_rules(victim: Victim) -> str:
    return alike(
        (
            both(
                victim,
                "gallery.DeleteGallery",
                pb.DeleteGalleryRequest(name="north-1"),
                key="writer",
            ),
            both(
                victim,
                "model.LoadModel",
                model_service_pb2.LoadModelRequest(file="x"),
                key="writer",
            ),
        )
    )


@case(
    "loads a model, backs up with an admin key that is bound to galleries",
    "both",
    "PERMISSION_DENIED; 403 PERMISSION_DENIED",
)
def tenant_rules(victim: Victim) -> str:
    load = model_service_pb2.LoadModelRequest(file="image.onnx", name="mine")
    backup = grpc_answer(
        victim, "gallery.BackupGalleries", pb.BackupGalleriesRequest(folder="x"), key="north"
    )
    loaded = both(victim, "model.LoadModel", load, key="north")
    assert backup in loaded, backup
    return loaded


@case(
    "more calls than the key's rate",
    "both",
    "RESOURCE_EXHAUSTED CLIENT_OVER_SHARE; 429 CLIENT_OVER_SHARE, with the time to wait",
)
def over_rate(victim: Victim) -> str:
    while grpc_answer(victim, EMBED, SOUND, key="slow") == "OK":
        pass
    status = grpc_status(victim, EMBED, SOUND, key="slow")
    retry = details.RetryInfo()
    assert any(one.Unpack(retry) for one in status.details), "RetryInfo"
    assert 0 < retry.retry_delay.ToMilliseconds() <= 5050
    _, headers, _ = http_reply(victim, "/v1/models", key="slow")
    assert 1 <= int(headers["retry-after"]) <= 5
    return f"{worded(status)}; {mirror(victim, EMBED, SOUND, key='slow')}, with the time to wait"


@case("health without a key (open: probes have none)", "both", "OK; 200")
def health(victim: Victim) -> str:
    request = health_pb2.HealthCheckRequest()
    found = health_pb2_grpc.HealthStub(victim.channel).Check(request, timeout=5)
    assert found.status == health_pb2.HealthCheckResponse.SERVING
    return "OK; " + alike(http_answer(victim, path, key="") for path in ("/healthz", "/readyz"))


@case(
    "a thousand watchers of health without a key, on one connection",
    "gRPC",
    "watched; a sound call beside them: OK",
)
def watchers(victim: Victim) -> str:
    stub = health_pb2_grpc.HealthStub(victim.channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(1000)]
    found = alike(f"{next(iter(one)).status}" for one in watching)
    # On another connection: a client's library holds back what is above the bound of one.
    with grpc.insecure_channel(victim.guarded.server.target, FRESH) as fresh:
        answer = grpc_answer(victim, EMBED, SOUND, channel=fresh)
    for one in watching:
        one.cancel()
    assert found == "1"
    return f"watched; a sound call beside them: {answer}"


@case("reflection and metrics without a key", "both", "UNAUTHENTICATED; 401")
def looking_around(victim: Victim) -> str:
    ask = reflection_pb2_grpc.ServerReflectionStub(victim.channel).ServerReflectionInfo
    try:
        list(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5))
        found = "OK"
    except grpc.RpcError as error:
        found = error.code().name
    return f"{found}; {http_answer(victim, '/metrics', key='')}"


@case("a method that is not there, without a key", "both", "UNAUTHENTICATED; 401 UNAUTHENTICATED")
def unknown_method(victim: Victim) -> str:
    call = victim.channel.unary_unary("/twinserve.v1.EmbeddingService/Debug")
    try:
        call(b"", timeout=5)
        found = "OK"
    except grpc.RpcError as error:
        found = error.code().name
    return f"{found}; {http_answer(victim, '/twinserve.v1.EmbeddingService/Debug', b'{}', key='')}"


@case(
    "a gallery made outside the names that the key reaches",
    "both",
    "PERMISSION_DENIED; 403 PERMISSION_DENIED",
)
def gallery_outside(victim: Victim) -> str:
    request = pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name="south-9", model="image"))
    return both(victim, "gallery.CreateGallery", request, key="north")
