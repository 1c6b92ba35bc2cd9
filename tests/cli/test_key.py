"""`twinserve key`: made once, listed without secrets, revoked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinserve.cli.__main__ import main
from twinserve.server.security import keys


def test_a_key_is_made_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.toml"
    where = ("--keys", str(path))
    wishes = ("--role", "write", "--gallery", "shop-*", "--rate", "50", "--days", "30")
    assert main(["key", "new", "shop", *where, *wishes, "--note", "of the shop"]) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert key.startswith("tws_shop_")
    assert said.out == f"{key}\n", "alone, for $(…)"
    assert key not in said.err
    assert keys.read(path)[0].digest == keys.digest_of(key)

    assert main(["key", "new", "ops", *where, "--role", "admin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"].startswith("tws_ops_")

    assert main(["key", "list", *where]) == 0
    shown = capsys.readouterr().out
    assert "shop-*" in shown
    assert "of the shop" in shown
    assert key not in shown
    assert main(["key", "list", *where, "--json"]) == 0
    shop, ops = json.loads(capsys.readouterr().out)
    assert (shop["role"], shop["rate"], shop["burst"]) == ("write", 50.0, 50.0)
    assert (ops["galleries"], ops["expires"]) == (None, None)

    assert main(["key", "new", "prometheus", *where, "--no-galleries"]) == 0
    assert "within two seconds" in capsys.readouterr().err
    assert keys.read(path)[2].galleries == ()
    assert main(["key", "revoke", "prometheus", *where]) == 0

    assert main(["key", "revoke", "shop", *where]) == 0
    assert [one.id for one in keys.read(path)] == ["ops"]
    assert main(["key", "revoke", "shop", *where]) == 2
    assert "has no key shop" in capsys.readouterr().err


def test_a_wrong_wish_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    for flags, said in (
        (["new", "A"], "the id 'A' is not"),
        (["new", "a", "--days", "0"], "--days is 0"),
        (["list"], "make one with `twinserve key new"),
    ):
        assert main(["key", *flags, "--keys", str(path)]) == 2
        assert said in capsys.readouterr().err
    assert not path.exists()
