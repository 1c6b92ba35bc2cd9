"""What an abuse case is, and the list of all of them.

A case is a function that abuses a running server over the wire and returns the answer that it saw;
its decorator says what is done, over which port, and the answer that is expected. The test holds
the two together, and docs/abuse.md is written from the list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.abuse.victim import Victim

Attempt = Callable[[Victim], str]


@dataclass(frozen=True)
class Case:
    """One abuse.

    Args:
        theme: heading under which the page has it.
        title: what the abuser does.
        port: gRPC, HTTP, or both.
        answer: that is expected: code and reason, or what becomes of the connection.
        attempt: does it, and returns the answer that came.
        mib: that the server's memory may grow meanwhile, at its highest.
        is_long: whether it takes more than seconds.
    """

    theme: str
    title: str
    port: str
    answer: str
    attempt: Attempt
    mib: int
    is_long: bool

    def __str__(self) -> str:
        return f"{self.attempt.__module__.rpartition('.')[2]}.{self.attempt.__name__}"


CASES: list[Case] = []
MIB = 64  # that memory may grow by, where a case says no other


def theme(heading: str) -> Callable[..., Callable[[Attempt], Attempt]]:
    """Return the decorator that declares the cases of one theme."""

    def case(
        title: str, port: str, answer: str, *, mib: int = MIB, is_long: bool = False
    ) -> Callable[[Attempt], Attempt]:
        def declare(attempt: Attempt) -> Attempt:
            CASES.append(Case(heading, title, port, answer, attempt, mib, is_long))
            return attempt

        return declare

    return case
