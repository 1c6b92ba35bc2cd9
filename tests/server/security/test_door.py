"""Who is let in, by key, role, galleries and rate."""

from __future__ import annotations

import dataclasses
import hmac

import pytest

from twinserve.errors import ClientOverShare, PermissionDenied, TwinserveError, Unauthenticated
from twinserve.server.security import door as doors
from twinserve.server.security.access import Access, Role
from twinserve.server.security.door import KeyDoor
from twinserve.server.security.keys import Key, digest_of

EMBED = "/twinserve.v1.EmbeddingService/Embed"
ENROLL = "/twinserve.v1.GalleryService/Enroll"
DELETE = "/twinserve.v1.GalleryService/DeleteGallery"
LOAD = "/twinserve.v1.ModelService/LoadModel"
SECRET = "tws_shop_0123"
SHOP = Key("shop", digest_of(SECRET), Role.WRITE, ("shop-*",))


def ask(door: KeyDoor, method: str = EMBED, key: str | None = SECRET) -> Access:
    metadata = [("user-agent", "x")]
    if key is not None:
        metadata.append(("authorization", f"Bearer {key}"))
    return door.admit(method, metadata, "ipv4:1.2.3.4:5")


def refusal(door: KeyDoor, method: str = EMBED, key: str | None = SECRET) -> TwinserveError:
    with pytest.raises(TwinserveError) as refused:
        ask(door, method, key)
    return refused.value


def test_a_key_lets_in_to_what_its_role_allows() -> None:
    door = KeyDoor([SHOP])
    assert ask(door) == Access("shop", Role.WRITE, ("shop-*",))
    assert ask(door, ENROLL).client == "shop"
    denied = refusal(door, DELETE)
    assert isinstance(denied, PermissionDenied)
    assert "has the role write, and DeleteGallery takes admin" in denied.message


@pytest.mark.parametrize(
    "key", [None, "", "tws_shop_0124", "tws_shop_", "tws_none_0123", "shop", "tws_shop", "é" * 9]
)
def test_no_key_and_any_wrong_one_are_refused_and_not_repeated(key: str | None) -> None:
    denied = refusal(KeyDoor([SHOP]), EMBED, key)
    assert isinstance(denied, Unauthenticated)
    assert "0123" not in denied.message
    assert not key or len(key) < 8 or key not in denied.message


@pytest.mark.parametrize(
    "value",
    [f"Basic {SECRET}", SECRET, f"Bearer{SECRET}", f"Bearer {SECRET} x", f"bearer  {SECRET}x"],
)
def test_only_a_bearer_token_is_a_key(value: str) -> None:
    with pytest.raises(Unauthenticated):
        KeyDoor([SHOP]).admit(EMBED, [("authorization", value)], "")


def test_the_scheme_may_be_written_in_any_case() -> None:
    for scheme in ("bearer", "BEARER"):
        metadata = [("authorization", f"{scheme} {SECRET}")]
        assert KeyDoor([SHOP]).admit(EMBED, metadata, "").client == "shop"


def test_hashes_are_compared_in_constant_time_also_for_ids_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    original = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return original(first, second)

    monkeypatch.setattr(doors.hmac, "compare_digest", compare)
    door = KeyDoor([SHOP])
    ask(door)
    refusal(door, EMBED, "tws_shop_9")
    refusal(door, EMBED, "tws_none_9")
    assert compared == [(32, 32)] * 3


def test_the_hash_of_nothing_known_lets_nobody_in() -> None:
    zeros = dataclasses.replace(SHOP, digest=bytes(32))
    assert isinstance(refusal(KeyDoor([zeros])), Unauthenticated)


def test_a_method_without_a_role_is_closed_to_all_but_admin() -> None:
    assert isinstance(refusal(KeyDoor([SHOP]), "/new.Service/Method"), PermissionDenied)
    admin = dataclasses.replace(SHOP, role=Role.ADMIN, galleries=None)
    assert ask(KeyDoor([admin]), "/new.Service/Method").client == "shop"


def test_what_is_of_all_takes_a_key_without_galleries() -> None:
    admin = dataclasses.replace(SHOP, role=Role.ADMIN)
    denied = refusal(KeyDoor([admin]), LOAD)
    assert isinstance(denied, PermissionDenied)
    assert "bound to some galleries" in denied.message
    assert ask(KeyDoor([dataclasses.replace(admin, galleries=None)]), LOAD).role is Role.ADMIN


def test_health_is_open_and_reaches_no_gallery() -> None:
    access = ask(KeyDoor([]), "/grpc.health.v1.Health/Check", None)
    assert access.role is Role.READ
    assert not access.reaches("any")


def test_a_key_expires() -> None:
    now = 100.0
    door = KeyDoor([dataclasses.replace(SHOP, expires=200.0)], now=lambda: now)
    assert ask(door).client == "shop"
    now = 200.0
    denied = refusal(door)
    assert isinstance(denied, Unauthenticated)
    assert "shop has expired" in denied.message


def test_a_rate_refuses_with_the_time_to_come_back_and_survives_other_changes() -> None:
    now = 0.0
    limited = dataclasses.replace(SHOP, rate=2.0, burst=2.0)
    door = KeyDoor([limited], clock=lambda: now)
    ask(door)
    ask(door)
    denied = refusal(door)
    assert isinstance(denied, ClientOverShare)
    assert denied.retry_after == 0.5
    door.replace([dataclasses.replace(limited, role=Role.ADMIN)])
    assert isinstance(refusal(door), ClientOverShare), "a change of the file is no new burst"
    now = 0.5
    assert ask(door).role is Role.ADMIN
    door.replace([dataclasses.replace(limited, rate=100.0, burst=100.0)])
    assert ask(door).client == "shop"


def test_a_call_that_the_role_refuses_counts_against_the_rate() -> None:
    door = KeyDoor([dataclasses.replace(SHOP, rate=1.0, burst=1.0)], clock=lambda: 0.0)
    assert isinstance(refusal(door, DELETE), PermissionDenied)
    assert isinstance(refusal(door, DELETE), ClientOverShare)


def test_what_was_let_in_is_valid_until_its_key_is_another() -> None:
    now = 0.0
    door = KeyDoor([dataclasses.replace(SHOP, expires=9.0)], now=lambda: now)
    access = ask(door)
    access.check_still_valid()
    door.replace([dataclasses.replace(SHOP, expires=99.0, note="the same", rate=5.0, burst=5.0)])
    access.check_still_valid()
    for changed in (
        [],
        [dataclasses.replace(SHOP, digest=bytes(32))],
        [dataclasses.replace(SHOP, role=Role.READ)],
        [dataclasses.replace(SHOP, galleries=("other",))],
    ):
        door.replace(changed)
        with pytest.raises(Unauthenticated, match="shop was revoked, changed or has expired"):
            access.check_still_valid()
    door.replace([SHOP])
    access.check_still_valid()
    now = 10.0
    with pytest.raises(Unauthenticated):
        access.check_still_valid()


def test_a_key_that_is_gone_from_the_file_opens_nothing() -> None:
    door = KeyDoor([SHOP])
    ask(door)
    door.replace([])
    assert isinstance(refusal(door), Unauthenticated)
