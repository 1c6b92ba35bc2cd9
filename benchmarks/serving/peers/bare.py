"""The best bare server that sixty lines of grpcio's public API give: Embed, a queue, batches.

What waits when a worker is free is its batch, first in, first out, texts padded to the longest. It
checks nothing, counts nothing, and survives no client's mischief: the price of the same contract
without a server around it.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvloop
from numpy.typing import NDArray

from benchmarks.serving.peers.twin import MAX_BATCH, Twin
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import embedding_service_pb2_grpc as rpc
from twinserve.v1.shared_pb2 import Embedding

Waiting = tuple[list[NDArray[Any]], "asyncio.Future[NDArray[Any]]"]


class Bare(rpc.EmbeddingServiceServicer):
    """Embed of pixels and texts, and nothing else of the contract."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()

    async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:
        if self.twin.tokenizer is None:
            rows = [self.twin.row(one.tensor.data) for one in request.inputs]
        else:
            rows = [self.twin.row(one.text.encode()) for one in request.inputs]
        future: asyncio.Future[NDArray[Any]] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((rows, future))
        results = [
            pb.EmbedResult(embedding=Embedding(values=values)) for values in (await future).tolist()
        ]
        return pb.EmbedResponse(results=results)

    async def work(self, pool: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            taken = [await self.queue.get()]
            while not self.queue.empty() and sum(len(rows) for rows, _ in taken) < MAX_BATCH:
                taken.append(self.queue.get_nowait())
            batch = [row for rows, _ in taken for row in rows]
            found = await loop.run_in_executor(pool, self.twin.run, batch)
            start = 0
            for rows, future in taken:
                if not future.done():
                    future.set_result(found[start : start + len(rows)])
                start += len(rows)


async def main() -> None:
    """Serve until killed."""
    workers = int(os.environ["WORKERS"])
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    bare = Bare(Twin.from_environment())  # type: ignore[abstract]
    rpc.add_EmbeddingServiceServicer_to_server(bare, server)
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    await server.start()
    with ThreadPoolExecutor(workers) as pool:
        await asyncio.gather(*(bare.work(pool) for _ in range(workers)))


if __name__ == "__main__":
    uvloop.run(main())
