"""A gateway in this process, over a servicer that waits, and a client of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp

from tests.server.gateway.asking import Answer
from twinserve.errors import ClientOverShare, PermissionDenied, Unauthenticated
from twinserve.server import gateway, http
from twinserve.server.batching.byte_budget import ByteBudget
from twinserve.server.completion import Completion
from twinserve.server.config import Limits
from twinserve.server.front import driven
from twinserve.server.gate import Gate
from twinserve.server.security.access import OPEN, Access
from twinserve.server.services.calls import access_of, caller_of, leave_front, unary
from twinserve.server.services.large_messages import LargeMessages
from twinserve.server.services.refusals import refusals
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import embedding_service_pb2_grpc as rpc
from twinserve.v1 import model_service_pb2_grpc

EMBED, COMPARE = (f"/twinserve.v1.EmbeddingService/{name}" for name in ("Embed", "Compare"))
LIMITS = Limits(max_calls=2, max_message_bytes=1 << 20)


class Waiting(rpc.EmbeddingServiceServicer):
    """Answers Embed at once, and Compare, which is driven, when it is told to."""

    def __init__(self) -> None:
        self.metrics, self.gate = Metrics(), Gate()
        self.begun = asyncio.Event()
        self.given_up = threading.Event()
        self.release: Completion[None] = Completion(self.given_up.set)
        self.callers: list[Any] = []
        self.ways: list[tuple[str, str, int]] = []
        self.threads: list[str] = []

    @unary
    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        self.callers.append((caller_of(context).client, access_of(context)))
        self.ways.append((context.method, context.rpc_system, context.message_bytes))
        if request.model == "fault":
            raise ZeroDivisionError
        reply = pb.EmbedResponse(request_id=request.request_id, results=[pb.EmbedResult()])
        reply.packed.dimension, reply.packed.data = 1, bytes(4)
        return reply

    @driven
    @unary
    async def Compare(self, request: pb.CompareRequest, context: Any) -> pb.CompareResponse:
        self.begun.set()
        await self.release
        await leave_front(context, 1000)
        self.threads.append(threading.current_thread().name)
        return pb.CompareResponse(model_version="twin@1")


class Keys:
    """A door that knows two keys."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def admit(self, method: str, metadata: Any, peer: str) -> Access:
        self.asked.append((method, peer))
        key = dict(metadata).get("authorization")
        if key == "Bearer good":
            return Access(client="tenant")
        if key == "Bearer busy":
            raise ClientOverShare("the key's rate is used up; come back later", retry_after=0.3)
        if key == "Bearer broken":
            raise ZeroDivisionError
        if key == "Bearer low":
            raise PermissionDenied("the key may read only; ask for one that may write")
        raise Unauthenticated("no key was sent that is known; send authorization: Bearer KEY")


@dataclass
class Served:
    """A gateway that listens, what it calls, and a client."""

    servicer: Waiting
    front: Any
    budget: ByteBudget
    url: str
    session: aiohttp.ClientSession

    async def ask(self, path: str, data: Any = b"{}", **headers: str) -> Answer:
        sent = {"Content-Type": "application/json", **headers}
        async with self.session.post(self.url + path, data=data, headers=sent) as reply:
            found = {name.lower(): value for name, value in reply.headers.items()}
            return Answer(reply.status, found, await reply.read())


@asynccontextmanager
async def serving(door: Any = None, limits: Limits = LIMITS) -> AsyncIterator[Served]:
    servicer, front = Waiting(), SimpleNamespace(calls=0, beside=0)
    budget = ByteBudget(1 << 21)
    with ThreadPoolExecutor(2, thread_name_prefix="read") as threads:
        calls = gateway.Calls(
            front,
            door or SimpleNamespace(admit=lambda *asked: OPEN),
            LargeMessages(budget, servicer.metrics),
            limits,
            refusals(servicer.metrics, limits.max_calls).overloaded,
            servicer.metrics,
            threads,
        )
        methods = gateway.Methods(
            {
                "twinserve.v1.EmbeddingService": servicer,
                "twinserve.v1.ModelService": model_service_pb2_grpc.ModelServiceServicer(),
            }
        )
        routes = [
            *gateway.Connect(calls, methods).routes(),
            *gateway.OpenAI(calls, methods).routes(),
        ]
        registry = servicer.metrics.registry
        runner, port = await http.start("127.0.0.1", 0, registry, lambda: True, routes=routes)
        try:
            async with aiohttp.ClientSession() as session:
                yield Served(servicer, front, budget, f"http://127.0.0.1:{port}", session)
        finally:
            await runner.cleanup()
        assert front.beside == 0, "a call that ended is counted as inside"
        assert budget.bytes == 0, "bytes of a call that ended are counted as inside"


def run(test: Callable[[Served], Awaitable[None]], **settings: Any) -> None:
    async def ran() -> None:
        async with serving(**settings) as served, asyncio.timeout(60):
            await test(served)

    asyncio.run(ran())


async def settled(condition: Callable[[], object]) -> None:
    """Wait until something is so, that no event tells."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
