"""The file of keys: what it takes, what it refuses, and how it is changed."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path

import pytest

from twinserve.errors import ConfigError
from twinserve.server.security import keys
from twinserve.server.security.access import Access, Role

HASH = f'hash = "sha256:{"0" * 64}"'
PLAIN = f'[[key]]\nid = "a"\n{HASH}\nrole = "read"\n'


def test_a_key_that_was_made_is_in_the_file_as_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    expires = datetime.datetime(2031, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)
    key = keys.make(
        path,
        "shop",
        Role.WRITE,
        galleries=["shop-*", "all"],
        rate=50,
        burst=100,
        expires=expires,
        note='of "the" shop\\',
    )
    assert re.fullmatch(r"tws_shop_[A-Za-z0-9_-]{43}", key), "256 random bits"
    text = path.read_text()
    secret = key.removeprefix("tws_shop_")
    assert secret not in text
    assert path.stat().st_mode & 0o777 == 0o600
    (read,) = keys.read(path)
    assert read == keys.Key(
        "shop",
        keys.digest_of(key),
        Role.WRITE,
        ("shop-*", "all"),
        50.0,
        100.0,
        expires.timestamp(),
        'of "the" shop\\',
    )
    assert keys.id_in(key) == "shop"


def test_what_is_left_out_bounds_nothing() -> None:
    (key,) = keys.parse(PLAIN, "f")
    assert key.galleries is None
    assert key.rate == 0.0
    assert math.isinf(key.expires)
    (key,) = keys.parse(PLAIN + "galleries = []\n", "f")
    assert key.galleries == (), "none, which is not all"
    (key,) = keys.parse(PLAIN + "rate = 0.5\n", "f")
    assert key.burst == 1.0, "below 1 no call would come in"


def test_times_are_in_utc_unless_they_say_so() -> None:
    first = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC).timestamp()
    for text in ("2030-01-01", "2030-01-01T00:00:00", "2030-01-01T02:00:00+02:00"):
        (key,) = keys.parse(f"{PLAIN}expires = {text}\n", "f")
        assert key.expires == first, text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[key]", "f is no TOML"),
        ("keys = 1", "f holds keys; it takes [[key]] tables alone"),
        ("key = 3", "write each key as a [[key]] table"),
        ("[key]\nid = 'a'", "write each key as a [[key]] table"),
        (PLAIN + "gallery = ['x']", "key 1 has gallery; a key has id, hash"),
        (PLAIN + PLAIN, "two keys have the id a"),
        (PLAIN.replace('"a"', '"A_b"'), "the id 'A_b' is not 1 to 32 of"),
        (PLAIN.replace('id = "a"', ""), "the id None is not"),
        (PLAIN.replace("read", "root"), "(a): role is 'root'; give read, write, admin"),
        (PLAIN.replace('"read"', "[]"), "role is []"),
        (PLAIN + "galleries = 'x'", "galleries is 'x'; give a list"),
        (PLAIN + "galleries = ['a*b']", "galleries has 'a*b'; give names"),
        (PLAIN + "galleries = ['../x']", "galleries has '../x'"),
        (PLAIN + "rate = 0", "rate is 0; give a number above 0"),
        (PLAIN + "rate = inf", "rate is inf"),
        (PLAIN + "rate = true", "rate is True"),
        (PLAIN + "rate = '5'", "rate is '5'"),
        (PLAIN + "burst = 5", "burst without rate"),
        (PLAIN + "rate = 5\nburst = 0.5", "burst is 0.5; below 1"),
        (PLAIN + "expires = '2030-01-01'", "give a date and time without quotes"),
        (PLAIN + "note = 3", "note is 3; give a text"),
    ],
)
def test_what_the_file_does_not_know_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        keys.parse(text, "f")
    assert said in str(refused.value)


def test_a_key_written_in_place_of_its_hash_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        keys.parse(PLAIN.replace(HASH, 'hash = "tws_a_secret"'), "f")
    assert "tws_a_secret" not in str(refused.value)
    assert "hash is not sha256:" in str(refused.value)


def test_comments_and_other_keys_survive_a_change(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f"# of the shop\n{PLAIN}# the first\n")
    path.chmod(0o640)
    keys.make(path, "b", Role.READ)
    keys.make(path, "c", Role.ADMIN)
    keys.revoke(path, "b")
    assert [key.id for key in keys.read(path)] == ["a", "c"]
    assert path.read_text().startswith(f"# of the shop\n{PLAIN}# the first\n")
    assert path.stat().st_mode & 0o777 == 0o640, "as it was"
    keys.revoke(path, "c")
    keys.revoke(path, "a")
    assert keys.read(path) == ()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    text = f'key = [{{id = "a", {HASH}, role = "read"}}]\n'
    path.write_text(text)
    with pytest.raises(ConfigError, match="by hand"):
        keys.revoke(path, "a")
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"key_id": "a"}, "has a key a already"),
        ({"key_id": "a_b"}, "the id 'a_b' is not"),
        ({"rate": -1.0}, "rate is -1"),
        ({"burst": 3.0}, "burst without rate"),
        ({"galleries": ["A"]}, "galleries has 'A'"),
    ],
)
def test_a_key_that_no_file_may_hold_is_not_made(
    tmp_path: Path, wish: dict[str, object], said: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(PLAIN)
    with pytest.raises(ConfigError) as refused:
        keys.make(path, **{"key_id": "new", "role": Role.READ, **wish})  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert path.read_text() == PLAIN


def test_access_reaches_names_and_beginnings() -> None:
    access = Access("shop", Role.READ, ("shop-*", "all"))
    assert access.reaches("shop-1")
    assert access.reaches("all")
    assert not access.reaches("all-of-them")
    assert not access.reaches("shop")
    assert not Access("x", Role.READ, ()).reaches("all")
    assert Access("x", Role.READ, ("*",)).reaches("all")
