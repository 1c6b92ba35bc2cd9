"""How many connections each port takes, and how long one may keep silent.

A connection costs a file descriptor and some memory whether or not anything is asked on it, so both
ports bound their number, and close those that say nothing.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

MOST_FILES = 65_536
# Seconds that a client has for the first bytes of a connection: TLS and HTTP/2's preface.
HANDSHAKE_SECONDS = 20
# Seconds after which a gRPC connection without a call is told to go; clients come back by
# themselves when they have a call to make.
IDLE_SECONDS = 15 * 60
# A connection on which nothing moved for so many seconds is asked for a sign of life, and closed
# where none comes: a client that is gone without a word.
ALIVE_SECONDS, SIGN_SECONDS = 60, 20
# Calls of one gRPC connection at a time; a client's own library holds back what is more. Without a
# bound, 40,000 streams that were opened and reset at once (CVE-2023-44487) took 400 MB, and sound
# calls waited behind them for more than ten seconds.
STREAMS = 1000
# Seconds that an HTTP connection may be without a request, or take over the head of one.
HTTP_SECONDS = 75


@dataclass(frozen=True, slots=True)
class MostConnections:
    """The bounds of the two ports."""

    grpc: int
    http: int


def allow_files() -> None:
    """Let this process open as many files as it may ask for, up to `MOST_FILES`.

    The usual 1,024 are meant for programs that use select(), which nothing here does.
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    if files != resource.RLIM_INFINITY and files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def most_connections(asked: int) -> MostConnections:
    """Return the bounds; 0 takes them from the files that this process may open."""
    if asked:
        return MostConnections(asked, asked)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        files = 1 << 20
    return MostConnections(max(16, files // 2), max(16, files // 4))


def grpc_options(most: int) -> list[tuple[str, int]]:
    """Return the channel arguments that hold this of a gRPC server."""
    return [
        ("grpc.max_allowed_incoming_connections", most),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ("grpc.keepalive_time_ms", ALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", SIGN_SECONDS * 1000),
    ]
