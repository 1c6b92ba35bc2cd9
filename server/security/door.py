"""The door of a server with keys: who a call is of, and whether it may be made.

A key is never kept, looked up by, logged or shown: it is hashed, and the hash compared in constant
time. That takes under 2 µs, so nothing is cached that a revoked key could come in by.
"""

from __future__ import annotations

import functools
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from twinserve.errors import ClientOverShare, PermissionDenied, Unauthenticated
from twinserve.server.request_ids import sent_in
from twinserve.server.security import audit
from twinserve.server.security.access import Access, Metadata, Role
from twinserve.server.security.keys import Key, digest_of, id_in
from twinserve.server.security.methods import OF_ALL, ROLES, is_open
from twinserve.server.security.rates import TokenBucket

log = logging.getLogger(__name__)

# Who calls what is open to all: may read, but no gallery.
ANYONE = Access(role=Role.READ, galleries=())

_NO_KEY = (
    "this server asks for a key, and none came; send the metadata (or HTTP header) "
    "`authorization: Bearer tws_…`, with the command line by TWINSERVE_API_KEY"
)
_UNKNOWN = (
    "the key is not known here: it is mistyped, of another server, or revoked; ask the operator "
    "for one"
)
_NO_DIGEST = bytes(32)
# Seconds in which a refusal that repeats itself is told of once.
QUIET_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Known:
    key: Key
    access: Access
    bucket: TokenBucket | None


class KeyDoor:
    """Lets in whoever has a key, to what its role allows, as often as its rate allows.

    Args:
        keys: that are valid.
        now: seconds since 1970.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._clock = clock
        # Never changed, only replaced: calls take no lock.
        self._known: Mapping[str, _Known] = {}
        self._strangers = 0  # calls without a valid key that no line of the log tells of yet
        self._tell_again = clock()  # from when on they may be told of
        self._denied: dict[tuple[str, str], float] = {}  # the same of each key and method
        self.replace(keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Let these keys in from now on, and no others."""
        self._known = {key.id: self._know(key) for key in keys}

    def _know(self, key: Key) -> _Known:
        before = self._known.get(key.id)
        bucket = None
        if key.rate:
            bucket = before.bucket if before is not None else None
            if bucket is None or (bucket.rate, bucket.burst) != (key.rate, key.burst):
                bucket = TokenBucket(key.rate, key.burst, self._clock)
        access = Access(
            key.id,
            key.role,
            key.galleries,
            still_valid=functools.partial(self._is_still_valid, key),
            seconds_to_next=functools.partial(self._seconds_to_next, key.id),
        )
        return _Known(key, access, bucket)

    def _seconds_to_next(self, key_id: str) -> float:
        known = self._known.get(key_id)
        return 0.0 if known is None or known.bucket is None else known.bucket.take()

    def _is_still_valid(self, key: Key) -> bool:
        known = self._known.get(key.id)
        return (
            known is not None
            and key.expires > self._now()
            and (known.key.digest, known.key.role, known.key.galleries)
            == (key.digest, key.role, key.galleries)
        )

    def admit(self, method: str, metadata: Metadata, peer: str) -> Access:
        """Say what the caller may do; see `Door`."""
        if is_open(method):
            return ANYONE
        try:
            known = self._identify(metadata)
        except Unauthenticated:
            self._tell_of_stranger(method, peer)
            raise
        try:
            return self._allow(known, method)
        except PermissionDenied as error:
            facts = {"request_id": sent_in(metadata)}
            self._tell_of_denial(known.key.id, method, peer, error, facts)
            raise

    def _allow(self, known: _Known, method: str) -> Access:
        key, access = known.key, known.access
        if known.bucket is not None:
            seconds = known.bucket.take()
            if seconds:
                raise ClientOverShare(
                    f"the key {key.id} has used up its rate of {key.rate:g} calls a second; retry "
                    "after the delay in RetryInfo, send several inputs a call, or ask the "
                    "operator for a higher rate",
                    retry_after=seconds,
                )
        needed = ROLES.get(method, Role.ADMIN)
        if access.role < needed:
            raise PermissionDenied(
                f"the key {key.id} has the role {access.role.name.lower()}, and "
                f"{_short(method)} takes {needed.name.lower()}; ask the operator for a key that "
                "has it"
            )
        if access.galleries is not None and method in OF_ALL:
            raise PermissionDenied(
                f"the key {key.id} is bound to some galleries, and {_short(method)} is of all; ask "
                "the operator for an admin key without galleries"
            )
        return access

    def _tell_of_stranger(self, method: str, peer: str) -> None:
        """Log calls without a valid key, many in one line: nobody may fill the disk with them."""
        self._strangers += 1
        now = self._clock()
        if now < self._tell_again:
            return
        log.warning(
            "%d calls without a valid key were refused since this was last said; the newest came "
            "from %s and asked for %.120r",
            self._strangers,
            peer,
            method,
        )
        self._strangers = 0
        self._tell_again = now + QUIET_SECONDS

    def _tell_of_denial(
        self,
        key: str,
        method: str,
        peer: str,
        error: PermissionDenied,
        facts: Mapping[str, audit.Fact],
    ) -> None:
        """Have the audit log tell what a key may not do; of each method once in a while."""
        if ROLES.get(method, Role.READ) is Role.READ:
            return
        now = self._clock()
        if now >= self._denied.get((key, method), now):
            self._denied[key, method] = now + QUIET_SECONDS
            name, code = _short(method), error.code.name
            audit.record(key=key, peer=peer, method=name, code=code, facts=facts)

    def _identify(self, metadata: Metadata) -> _Known:
        key = _bearer(metadata)
        if not key:
            raise Unauthenticated(_NO_KEY)
        known = self._known.get(id_in(key))
        # An id that there is none of takes as long as a wrong secret.
        digest = _NO_DIGEST if known is None else known.key.digest
        if not hmac.compare_digest(digest_of(key), digest) or known is None:
            raise Unauthenticated(_UNKNOWN)
        if known.key.expires <= self._now():
            raise Unauthenticated(f"the key {known.key.id} has expired; ask the operator for one")
        return known


def _bearer(metadata: Metadata) -> str:
    """Return the key that came with a call; "" where none did.

    Raises:
        Unauthenticated: several came: what lies before this server may have looked at another.
    """
    values = [value for name, value in metadata if name == "authorization"]
    if len(values) > 1:
        raise Unauthenticated(
            f"{len(values)} authorizations came with the call; send one, `authorization: Bearer …`"
        )
    if not values or not isinstance(values[0], str):
        return ""
    scheme, _, key = values[0].partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _short(method: str) -> str:
    return method.rpartition("/")[2]
