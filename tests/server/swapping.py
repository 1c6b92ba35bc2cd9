"""Clients that call while models are swapped below them, and check every answer they get."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from tests.conftest import RunningServer
from tests.server.wire import Stubs
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import model_service_pb2 as model_pb
from twinserve.v1 import shared_pb2

Vectors = np.ndarray


@dataclass(frozen=True)
class Version:
    """What a right answer of one version is."""

    space_id: str
    vectors: Vectors  # float32 [inputs, dimension]


@dataclass
class Clients:
    """Threads that embed under some names until told to stop.

    Args:
        server: to be asked.
        inputs: each call sends two of them.
        versions: the right answers by name@version.
        names: that are asked for in turn.
        tolerance: by which coordinates may differ, for rides in other batches.
    """

    server: RunningServer
    inputs: Sequence[shared_pb2.Input]
    versions: Mapping[str, Version]
    names: Sequence[str]
    threads: int = 8
    tolerance: float = 1e-4
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        for number in range(self.threads):
            thread = threading.Thread(target=self._call, args=(number,))
            thread.start()
            self._running.append(thread)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join()

    def _call(self, number: int) -> None:
        with self.server.channel() as channel:
            stub = Stubs(channel).embedding
            for turn in itertools.count(number):
                if self._stop.is_set() or self.wrong:
                    return
                name = self.names[turn % len(self.names)]
                some = [turn % len(self.inputs), (turn * 7 + 1) % len(self.inputs)]
                try:
                    reply = stub.Embed(
                        pb.EmbedRequest(model=name, inputs=[self.inputs[i] for i in some]),
                        timeout=60,
                    )
                except grpc.RpcError as error:
                    self.wrong.append(f"{name!r}: {error}")
                    return
                self._check(name, some, reply)

    def _check(self, name: str, some: list[int], reply: pb.EmbedResponse) -> None:
        version = self.versions.get(reply.model_version)
        if version is None or reply.space_id != version.space_id:
            self.wrong.append(f"{name!r}: {reply.model_version} with space {reply.space_id}")
            return
        for at, result in zip(some, reply.results, strict=True):
            got = np.array(result.embedding.values, np.float32)
            if result.embedding.space_id != version.space_id or not np.allclose(
                got, version.vectors[at], atol=self.tolerance
            ):
                self.wrong.append(f"{name!r}: a vector that is not of {reply.model_version}")
                return
        self.answered[reply.model_version] += 1


def swap(
    server: RunningServer,
    files: Sequence[Path],
    versions: Sequence[str],
    times: int,
    alias: str,
    between: Callable[[int], None] = lambda _: None,
) -> None:
    """Load the next of some files, point the alias at it, and unload the one before: so often.

    Args:
        server: that serves the first of them.
        files: in the model folder, in turn.
        versions: of them, as name@version.
        times: how often.
        alias: that is moved each time.
        between: called after each swap with its number.
    """
    with server.channel() as channel:
        stub = Stubs(channel).model
        for turn in range(1, times + 1):
            new, old = turn % len(files), (turn - 1) % len(files)
            stub.LoadModel(
                model_pb.LoadModelRequest(file=files[new].name, aliases=[alias]), timeout=300
            )
            name, _, version = versions[old].partition("@")
            stub.UnloadModel(model_pb.UnloadModelRequest(name=name, version=version), timeout=60)
            between(turn)


def resident(server: RunningServer) -> int:
    """Bytes of the server's process in memory."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) << 10


def threads(server: RunningServer) -> int:
    """How many threads the server's process has."""
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
