"""A front in this process, on a loop of its own, with methods of plain bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from twinserve.server.front import Front, Refusals

HANDLERS = {
    "uu": grpc.unary_unary_rpc_method_handler,
    "us": grpc.unary_stream_rpc_method_handler,
    "su": grpc.stream_unary_rpc_method_handler,
    "ss": grpc.stream_stream_rpc_method_handler,
}


class Refusal(grpc.Status):
    """What a call above the limit is answered with."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    details = "full"
    trailing_metadata = (("again", "soon"),)


class Late(grpc.Status):
    """What a call is answered with that would have its turn too late."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    trailing_metadata = ()

    def __init__(self, seconds: float) -> None:
        self.details = f"late by {seconds:g}"


class Stopping(grpc.Status):
    """What a call is answered with that comes while the server stops."""

    code = grpc.StatusCode.UNAVAILABLE
    details = "stopping"
    trailing_metadata = ()


class Running:
    """A started front, and channels to it."""

    def __init__(self, methods: dict[str, tuple[str, Any]], **settings: Any) -> None:
        self._threads = ThreadPoolExecutor(2)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        refusals = Refusals(Refusal, Late, Stopping)
        limits = {"options": [], "max_calls": 100, "refusals": refusals, **settings}
        self.front = Front(threads=self._threads, **limits)
        self.front.add_registered_method_handlers(
            "s", {name: HANDLERS[kind](method) for name, (kind, method) in methods.items()}
        )
        self.port = self.front.add_insecure_port("127.0.0.1:0")
        self._thread.start()
        self.on_loop(self.front.start())
        self._channels: list[grpc.Channel] = []

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def on_loop(self, coroutine: Any, seconds: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        # Connections of their own, not one that channels of the same address share.
        own = ("grpc.use_local_subchannel_pool", 1)
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", (own, *options))
        self._channels.append(channel)
        return channel

    def settle(self, calls: int = 0) -> None:
        """Wait until so many calls are inside."""
        waited = threading.Event()
        for _ in range(1500):
            if self.front.calls == calls:
                return
            waited.wait(0.01)
        raise AssertionError(f"{self.front.calls} calls are inside, {calls} were expected")

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.on_loop(self.front.stop(None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        self._threads.shutdown()


@pytest.fixture
def run_front() -> Iterator[Callable[..., Running]]:
    """Start fronts that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(methods: dict[str, tuple[str, Any]], **settings: Any) -> Running:
            running = Running(methods, **settings)
            stack.callback(running.close)
            return running

        yield start
