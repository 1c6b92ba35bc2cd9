"""Good calls, rubbish, short deadlines and cancelled calls at once: the server answers all of them.

Seeded and bounded. Afterwards nothing is counted that is not there, no call ended with a fault of
ours, and the server serves as before.
"""

from __future__ import annotations

import asyncio
import random
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import numpy as np

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Stubs
from twinserve.v1 import embedding_service_pb2, gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

SEED = 23
CALLS_EACH, CLIENTS = 40, 16
PICTURES = [wire.png(pixels) for pixels in twins.classes_of_pixels(16, 1)[0]]


def some_input(chance: random.Random) -> shared_pb2.Input:
    """A good picture more often than not, else one of many kinds of rubbish."""
    picture = chance.choice(PICTURES)
    rubbish: list[Callable[[], shared_pb2.Input]] = [
        lambda: shared_pb2.Input(image=chance.randbytes(chance.randint(0, 2000))),
        lambda: shared_pb2.Input(image=picture[: chance.randint(0, len(picture))]),
        lambda: shared_pb2.Input(text="who"),
        lambda: shared_pb2.Input(
            tensor=shared_pb2.Tensor(
                data_type=chance.randint(0, 3),  # type: ignore[arg-type]
                shape=[chance.randint(-2, 40) for _ in range(chance.randint(0, 4))],
                data=chance.randbytes(784),
            )
        ),
        lambda: wire.ready(np.ones(chance.randint(15, 17)), chance.choice(["", "sp_x"])),
        lambda: shared_pb2.Input(),
    ]
    good = chance.random() < 0.7
    return shared_pb2.Input(image=picture) if good else chance.choice(rubbish)()


def some_call(stubs: Stubs, chance: random.Random) -> grpc.aio.UnaryUnaryCall:  # type: ignore[type-arg]
    """One call of some kind."""
    inputs = [some_input(chance) for _ in range(chance.randint(0, 6))]
    deadline = chance.choice([None, None, 0.001, 0.01, 5])
    enrolled = [
        pb.EnrollItem(item=shared_pb2.Item(id=f"i{chance.randint(0, 200)}"), input=one)
        for one in inputs
    ]
    pairs = [embedding_service_pb2.Pair(first=one, second=inputs[0]) for one in inputs]
    calls: list[Callable[[], object]] = [
        lambda: stubs.embedding.Embed(
            embedding_service_pb2.EmbedRequest(inputs=inputs), timeout=deadline
        ),
        lambda: stubs.embedding.Compare(
            embedding_service_pb2.CompareRequest(pairs=pairs), timeout=deadline
        ),
        lambda: stubs.gallery.Enroll(pb.EnrollRequest(gallery="chaos", items=enrolled)),
        lambda: stubs.gallery.Search(
            pb.SearchRequest(gallery="chaos", probes=inputs, top_k=chance.choice([0, 1, 1000])),
            timeout=deadline,
        ),
        lambda: stubs.gallery.Remove(
            pb.RemoveRequest(gallery="chaos", subject=f"i{chance.randint(0, 200)}")
        ),
    ]
    return chance.choice(calls)()


async def one_client(stubs: Stubs, number: int, codes: Counter[str]) -> None:
    chance = random.Random(SEED + number)
    for _ in range(CALLS_EACH):
        call = some_call(stubs, chance)
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.02)
            call.cancel()
        try:
            await call
            codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
        except asyncio.CancelledError:
            codes["cancelled here"] += 1


def test_rubbish_and_cancelled_calls_leave_the_server_as_it_was(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    server = start_server("--model", twin_file, "--data-dir", tmp_path)
    codes: Counter[str] = Counter()

    async def flood() -> None:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stubs = Stubs(channel)
            made: Awaitable[object] = stubs.gallery.CreateGallery(
                pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name="chaos"))
            )
            await made
            await asyncio.gather(*(one_client(stubs, i, codes) for i in range(CLIENTS)))
            await stubs.embedding.Embed(
                embedding_service_pb2.EmbedRequest(inputs=[shared_pb2.Input(image=PICTURES[0])])
            )

    asyncio.run(flood())
    assert sum(codes.values()) == CALLS_EACH * CLIENTS
    known = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "CANCELLED"}
    # Some deadlines are too short for what waits before their call, which is refused unread.
    assert set(codes) <= known | {"RESOURCE_EXHAUSTED", "cancelled here"}, codes
    assert codes["OK"] > 50
    assert codes["INVALID_ARGUMENT"] > 10
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
        text = reply.read().decode()
    assert "twinserve_admitted_rows 0.0" in text
    assert 'twinserve_queue_rows{model="small"} 0.0' in text
    assert server.stop() == 0
    # grpc itself logs an error when a call is cancelled while it answers; ours must not.
    assert not [line for line in server.errors if '"level":"error"' in line]
