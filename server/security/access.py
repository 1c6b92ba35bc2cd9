"""What a caller may do, and the door that tells it: the seam between transports and services.

A transport (the gRPC front, the HTTP port) asks the door once a call, before anything of its
message is read; the services ask the access that came of it which galleries it reaches. Without
keys the door is open: everybody who can connect may do everything.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from twinserve.errors import PermissionDenied, Unauthenticated

Metadata = Iterable[tuple[str, str | bytes]]


class Role(enum.IntEnum):
    """What a key may do; each role may do what those before it may."""

    READ = 1  # embed, compare, search, verify, read items and models
    WRITE = 2  # enroll, remove and move items
    ADMIN = 3  # make and delete galleries, back up, load and unload models


@dataclass(frozen=True, slots=True)
class Access:
    """What one caller may do.

    Args:
        client: the key's id, by which callers share the server; "" where there are no keys, and
            the connection tells callers apart.
        role: the highest that it has.
        galleries: names, or beginnings of names that end with `*`; None means all.
        still_valid: whether the door would let the caller in with the same again: a stream may be
            open for days, and its key revoked meanwhile.
        seconds_to_next: takes one call of the caller's rate and returns 0, or the seconds until
            there is one: for the messages of a stream, which wait instead of being refused.
    """

    client: str = ""
    role: Role = Role.ADMIN
    galleries: tuple[str, ...] | None = None
    still_valid: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)
    seconds_to_next: Callable[[], float] = field(default=lambda: 0.0, repr=False, compare=False)

    def reaches(self, gallery: str) -> bool:
        """Say whether the caller may know of a gallery."""
        return self.galleries is None or any(
            gallery.startswith(name[:-1]) if name.endswith("*") else gallery == name
            for name in self.galleries
        )

    def check(self, gallery: str, field: str = "gallery") -> None:
        """Refuse a gallery that is out of reach, there or not: names are secrets too.

        Raises:
            PermissionDenied: as said.
        """
        if not self.reaches(gallery):
            raise self.out_of_reach(gallery, field)

    def check_still_valid(self) -> None:
        """Refuse a further message of a stream whose key is no longer what it was let in with.

        Raises:
            Unauthenticated: as said.
        """
        if not self.still_valid():
            raise Unauthenticated(
                f"the key {self.client} was revoked, changed or has expired since this stream was "
                "opened; open another, with a valid key"
            )

    def out_of_reach(self, gallery: str, field: str = "gallery") -> PermissionDenied:
        """Return what a gallery that is out of reach is refused with."""
        return PermissionDenied(
            f"the key {self.client} does not reach the gallery {gallery!r:.80}; use one of its "
            "own, or ask the operator for a key that does",
            field=field,
        )


OPEN = Access()


class Door(Protocol):
    """Lets callers in, or not."""

    def admit(self, method: str, metadata: Metadata, peer: str) -> Access:
        """Say what the caller of a method may do; cheap, since every call asks.

        Args:
            method: as gRPC names it, such as `/twinserve.v1.EmbeddingService/Embed`; an HTTP route
                asks with the method that it stands for.
            metadata: of the call, keys in lower case; `authorization: Bearer KEY` is the key.
            peer: the other side's address.

        Raises:
            Unauthenticated: no key, or none that is known.
            PermissionDenied: the key's role is too low for the method.
            ClientOverShare: the key's rate is used up; with the time to come back.
        """


class OpenDoor:
    """The door of a server without keys."""

    def admit(self, method: str, metadata: Metadata, peer: str) -> Access:
        """Let everybody do everything."""
        return OPEN
