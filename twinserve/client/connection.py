"""Where a client speaks to, with what it says who it is, and how long it tries.

Both clients are made from the same settings, and read gRPC's errors the same way; what they add is
how they wait.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from twinserve import messages
from twinserve.client.retries import Attempts, RetryPolicy
from twinserve.client.tls import TLS
from twinserve.errors import ClientClosed, ConfigError, TwinserveError

API_KEY_VARIABLE = "TWINSERVE_API_KEY"
_OPTIONS = (
    # The limit on a message is the server's to set; a client that refuses replies is of no use.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that restarts is found again in a blink, not after gRPC's second and more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # gRPC's name for what one attempt to connect may take, TLS included: a few round trips round
    # the world and a busy server, yet not gRPC's 20 s where an address swallows what is sent.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # The retries are ours: gRPC's own know no RetryInfo.
    ("grpc.enable_retries", 0),
)


class Connection:
    """One connection to a server, opened with the first call and used by all.

    Every call raises the classes of `twinserve.errors`.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        tls: TLS | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        unavailable_for: float | None = None,
        priority: Literal["high", "normal", "low"] | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Say where the server is; nothing is sent before the first call.

        Args:
            target: host:port, or any name that gRPC resolves, such as `dns:///twins:50051`. Of
                several addresses, `ipv4:10.0.0.1:50051,10.0.0.2:50051`, the first that answers is
                used.
            api_key: sent as a bearer token with every call; None is the environment's
                TWINSERVE_API_KEY, if any, and "" sends none.
            timeout: seconds that a call may take, its retries included.
            tls: encrypts the connection; None connects in plain text.
            credentials: of gRPC, in place of `tls`, for whoever has some.
            unavailable_for: seconds for which a server that cannot be reached is tried again; None
                means as long as the call's deadline.
            priority: of every call: "high", "normal" or "low"; None is the server's default,
                normal.
            options: further arguments of the gRPC channel, which go before ours.

        Raises:
            ConfigError: `tls` and `credentials` together, a file of `tls` that cannot be read, or
                a key that no server can have given.
        """
        self.target = target
        self._timeout = timeout
        self._retries = RetryPolicy(timeout if unavailable_for is None else unavailable_for)
        key = _usable(os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key)
        sent = (
            ("authorization", f"Bearer {key}" if key else None),
            ("twinserve-priority", priority),
        )
        self._metadata = tuple((name, value) for name, value in sent if value is not None)
        if tls is not None and credentials is not None:
            raise ConfigError("tls and credentials were given together; give one of them")
        self._credentials = credentials if tls is None else tls.credentials()
        own = {name for name, _ in options}
        self._options = [*options, *(pair for pair in _OPTIONS if pair[0] not in own)]
        if tls is not None and tls.server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", tls.server_name))
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        """Do what a client does when it is made."""

    def _attempts(self, timeout: float | None, at_least: float = 0.0) -> Attempts:
        seconds = max(self._timeout, at_least) if timeout is None else timeout
        return Attempts(self._retries.pause, seconds)

    def _closed_error(self) -> ClientClosed:
        return ClientClosed(
            f"this client of {self.target} is closed; make a new one, or call it inside its `with`"
        )

    def _error(self, failure: grpc.RpcError) -> TwinserveError:
        """Return our error of gRPC's, of the class that the server raised."""
        try:
            status = rpc_status.from_call(failure)
        except ValueError:  # details that contradict the status: trust the status
            status = None
        if status is None:
            code = failure.code()
            number = int(code.value[0])
            text = failure.details() or code_pb2.Code.Name(number)
            if code is grpc.StatusCode.CANCELLED and self._closed:
                return self._closed_error()
            if code is grpc.StatusCode.UNAVAILABLE:
                advice = _advice(text, self._credentials is not None)
                text = f"no server answers at {self.target} ({text}); {advice}"
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                text = f"{self.target} did not answer in time; give the call a longer timeout"
            status = status_pb2.Status(code=number, message=text)
        return messages.from_status(status)


def _usable(key: str | None) -> str:
    """Return a key without the line break of the file that it was read from.

    Raises:
        ConfigError: gRPC could not send it, and would not say why.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            "the API key holds what no key has (a line break inside, or a letter beyond ASCII); "
            "give the one line that `twinserve key new` printed"
        )
    return key


def _advice(said: str, encrypted: bool) -> str:
    """Say what helps where nobody answers, by what gRPC said of it."""
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            "no authority that is trusted here signed its certificate: name the one that did, "
            "TLS(ca=…), --tls-ca or TWINSERVE_CLIENT_TLS_CA"
        )
    if "ostname " in said and "erif" in said:
        return (
            "its certificate is for another name: use that name, or give it as server_name of TLS"
        )
    if "Socket closed" in said or "reset" in said:
        return (
            "check that it runs there, and where it asks for a client's certificate, show one "
            "(cert and key of TLS, --tls-cert and --tls-key)"
            if encrypted
            else "check that it runs there, and whether it speaks TLS: then use TLS too "
            "(tls=TLS(…), --tls-ca)"
        )
    return "check that it runs there"
