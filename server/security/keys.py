"""The file of keys: TOML, one `[[key]]` each, with a hash of the key and never the key.

    [[key]]
    id = "shop"                          # also who the caller is, for fairness and the audit log
    hash = "sha256:9f86d08…"             # of the whole key, `tws_shop_…`
    role = "write"                       # read, write or admin
    galleries = ["shop-*"]               # absent: all
    rate = 50                            # calls a second; absent: no limit
    burst = 100                          # calls at once; absent: as many as rate
    expires = 2027-01-01T00:00:00Z       # absent: never

A key is `tws_<id>_<secret>` with 256 random bits of secret, so that a plain SHA-256 keeps it: there
are too many to try. People and programs write the file, so what it does not know is an error: a
misspelt `galleries` must not open them all.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinserve.errors import ConfigError
from twinserve.server.security.access import Role

PREFIX = "tws_"
SECRET_BYTES = 32

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_GALLERY = re.compile(r"\*|[a-z0-9][a-z0-9._-]{0,62}\*?")
_FIELDS = ("id", "hash", "role", "galleries", "rate", "burst", "expires", "note")
_ROLES: Mapping[Any, Role] = {role.name.lower(): role for role in Role}


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as the file tells of it."""

    id: str
    digest: bytes  # SHA-256 of the whole key
    role: Role
    galleries: tuple[str, ...] | None = None  # as in `Access`
    rate: float = 0.0  # calls a second; 0: no limit
    burst: float = 0.0  # calls at once
    expires: float = math.inf  # seconds since 1970
    note: str = ""


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key as a client sends it."""
    return hashlib.sha256(key.encode(errors="replace")).digest()


def id_in(key: str) -> str:
    """Return the id that a key names; "" where it is none of ours."""
    if not key.startswith(PREFIX):
        return ""
    name, separator, _ = key[len(PREFIX) :].partition("_")
    return name if separator else ""


def read(path: Path) -> tuple[Key, ...]:
    """Read a file of keys.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; no secret is in the message.
    """
    return parse(_text(path), str(path))


def parse(text: str, name: str) -> tuple[Key, ...]:
    """Read the text of a file of keys; see `read`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is no TOML: {error}") from None
    unknown = sorted(document.keys() - {"key"})
    if unknown:
        raise ConfigError(f"{name} holds {', '.join(unknown)}; it takes [[key]] tables alone")
    tables = document.get("key", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise ConfigError(f"{name}: write each key as a [[key]] table")
    keys = tuple(_key(table, f"{name}: key {i + 1}") for i, table in enumerate(tables))
    seen: set[str] = set()
    for key in keys:
        if key.id in seen:
            raise ConfigError(f"{name}: two keys have the id {key.id}; give each its own")
        seen.add(key.id)
    return keys


def make(
    path: Path,
    key_id: str,
    role: Role,
    *,
    galleries: Iterable[str] | None = None,
    rate: float = 0.0,
    burst: float = 0.0,
    expires: datetime.datetime | None = None,
    note: str = "",
) -> str:
    """Make a key, add it to the file (which is made where there is none), and return it.

    Nobody can tell it again: the file has its hash alone.

    Raises:
        ConfigError: a setting that no key can have, an id that is taken, or a file that is wrong.
    """
    if not _ID.fullmatch(key_id):
        raise ConfigError(_wrong_id(key_id))
    text = _text(path) if path.exists() else ""
    if key_id in {key.id for key in parse(text, str(path))}:
        raise ConfigError(
            f"{path} has a key {key_id} already; give the new one another id, and revoke the old "
            "one once all use the new one"
        )
    key = f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    lines = [
        "[[key]]",
        f'id = "{key_id}"',
        f'hash = "sha256:{digest_of(key).hex()}"',
        f'role = "{role.name.lower()}"',
    ]
    # A JSON string is a TOML string, and so is a list of them.
    if galleries is not None:
        lines.append(f"galleries = {json.dumps(list(galleries))}")
    if rate:
        lines.append(f"rate = {rate:g}")
    if burst:
        lines.append(f"burst = {burst:g}")
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}")
    if note:
        lines.append(f"note = {json.dumps(note)}")
    before = f"{text.rstrip()}\n\n" if text.strip() else ""
    changed = before + "\n".join(lines) + "\n"
    parse(changed, str(path))  # raises what is wrong with the settings, before anything is written
    _write(path, changed)
    return key


def revoke(path: Path, key_id: str) -> None:
    """Take a key out of the file; the rest, comments included, stays as it is.

    Raises:
        ConfigError: there is no such key, or the file is wrong.
    """
    text = _text(path)
    keys = parse(text, str(path))
    if key_id not in {key.id for key in keys}:
        raise ConfigError(f"{path} has no key {key_id}; `twinserve key list` shows those it has")
    changed = _without(text, key_id)
    try:
        as_wanted = parse(changed, str(path)) == tuple(key for key in keys if key.id != key_id)
    except ConfigError:
        as_wanted = False
    if not as_wanted:
        raise ConfigError(
            f"{path} is written in a way that this command cannot change safely; take the [[key]] "
            f"table of {key_id} out by hand"
        )
    _write(path, changed)


def _without(text: str, key_id: str) -> str:
    """Leave a key's table out: from its `[[key]]` line to the next table's."""
    parts = re.split(r"(?m)^(?=\[\[key\]\])", text)
    own = re.compile(rf"""(?m)^\s*id\s*=\s*["']{re.escape(key_id)}["']""")
    return "".join(part for part in parts if not own.search(part))


def _key(table: Mapping[str, Any], where: str) -> Key:
    unknown = sorted(table.keys() - set(_FIELDS))
    if unknown:
        raise ConfigError(f"{where} has {', '.join(unknown)}; a key has {', '.join(_FIELDS)}")
    key_id = table.get("id")
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise ConfigError(f"{where}: {_wrong_id(key_id)}")
    where = f"{where} ({key_id})"
    found = _HASH.fullmatch(str(table.get("hash")))
    if found is None:
        # The value is not shown: somebody may have written the key itself.
        raise ConfigError(
            f"{where}: hash is not sha256: and 64 hexadecimal digits; make keys with `twinserve "
            "key new`, or take the digits from printf %s KEY | sha256sum"
        )
    role = _ROLES.get(table.get("role")) if isinstance(table.get("role"), str) else None
    if role is None:
        raise ConfigError(f"{where}: role is {table.get('role')!r}; give {', '.join(_ROLES)}")
    rate = _number(table, "rate", where)
    burst = _number(table, "burst", where)
    if burst and not rate:
        raise ConfigError(f"{where}: burst without rate says nothing; give both, or leave it out")
    if burst and burst < 1:
        raise ConfigError(f"{where}: burst is {burst:g}; below 1 no call would ever be let in")
    note = table.get("note", "")
    if not isinstance(note, str):
        raise ConfigError(f"{where}: note is {note!r}; give a text")
    return Key(
        id=key_id,
        digest=bytes.fromhex(found[1]),
        role=role,
        galleries=_galleries(table, where),
        rate=rate,
        burst=burst or max(rate, 1.0) if rate else 0.0,
        expires=_expires(table, where),
        note=note,
    )


def _wrong_id(key_id: object) -> str:
    return f"the id {key_id!r:.80} is not 1 to 32 of a-z 0-9 -, beginning with a letter or digit"


def _galleries(table: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    found = table.get("galleries")
    if found is None and "galleries" not in table:
        return None
    if not isinstance(found, list):
        raise ConfigError(f"{where}: galleries is {found!r}; give a list of names, or leave it out")
    for name in found:
        if not isinstance(name, str) or not _GALLERY.fullmatch(name):
            raise ConfigError(
                f"{where}: galleries has {name!r:.80}; give names of galleries, or the beginning "
                "of names and a *"
            )
    return tuple(found)


def _number(table: Mapping[str, Any], field: str, where: str) -> float:
    found = table.get(field, 0)
    if field not in table:
        return 0.0
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise ConfigError(f"{where}: {field} is {found!r}; give a number above 0, or leave it out")
    return float(found)


def _expires(table: Mapping[str, Any], where: str) -> float:
    found = table.get("expires")
    if found is None:
        return math.inf
    if isinstance(found, datetime.date) and not isinstance(found, datetime.datetime):
        found = datetime.datetime.combine(found, datetime.time())
    if not isinstance(found, datetime.datetime):
        raise ConfigError(
            f"{where}: expires is {found!r}; give a date and time without quotes, such as "
            "2027-01-01T00:00:00Z"
        )
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return found.timestamp()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8, so no file of keys") from None
    except OSError as error:
        raise ConfigError(
            f"the file of keys {path} cannot be read ({error.strerror}); make one with "
            f"`twinserve key new ID --keys {path}`"
        ) from None


def _write(path: Path, text: str) -> None:
    """Replace the file in one step; a new one is readable by its owner alone."""
    # What a link points to is replaced, and not the link.
    path = path.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with 0600
    try:
        with os.fdopen(handle, "w") as file:
            if path.exists():  # the server that reads it may be another user's
                before = path.stat()
                os.fchmod(handle, before.st_mode & 0o777)
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(handle, before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
