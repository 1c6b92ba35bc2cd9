"""Our server with galleries of ready embeddings: started, filled, asked, stopped, started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc
import numpy as np

from benchmarks.gallery import messages, workers
from benchmarks.gallery.data import Data, Ids, Vectors, recall
from benchmarks.serving import machine, wire
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2_grpc as rpc

SEARCH, ENROL, GET = (messages.SERVICE + name for name in ("Search", "Enroll", "GetGallery"))
BATCH = 1_000  # items of one Enroll
CHECK_ROWS = 32  # probes of a call where only recall is looked for
STEADY_SECONDS = 2.0  # without much work, after which a debt that is left is taken to stay
STEADY_SHARE = 0.5  # of a processor; a builder takes a whole one, what is asked meanwhile less


@dataclass(frozen=True)
class WorkedOff:
    """How a debt of the index went: seconds until it was at its least, and what that is."""

    seconds: float
    left: int


class Served:
    """One server on a data folder that outlives it.

    Args:
        twin: the file that it serves.
        folder: of its data.
        flags: beside.
    """

    def __init__(self, twin: Path, folder: Path, flags: Sequence[str] = ()) -> None:
        self.folder = folder
        self._twin, self._flags = twin, tuple(flags)
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as this

    def start(self) -> float:
        """Start it, and return the seconds until it said SERVING.

        Raises:
            RuntimeError: it said something else.
        """
        began = time.perf_counter()
        command = [sys.executable, "-m", "twinserve.server", "--model", str(self._twin)]
        command += ["--data-dir", str(self.folder), "--grpc-port", "0", "--http-port", "0"]
        self._process = subprocess.Popen(
            [*command, *self._flags],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=workers.ROOT,
            env={**os.environ, "PYTHONPATH": str(workers.ROOT)},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        seconds = time.perf_counter() - began
        found = re.search(r"grpc=\S+:(\d+)", said)
        if found is None:
            self.kill()
            self._errors.seek(0)
            raise RuntimeError(
                f"our server said {said!r} instead of SERVING: {self._errors.read()[-2000:]}"
            )
        self.port = int(found[1])
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub = rpc.GalleryServiceStub(self._channel)
        return seconds

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def stop(self) -> float:
        """End it as an operator would; return the seconds that took."""
        began = time.perf_counter()
        self._end(signal.SIGTERM)
        return time.perf_counter() - began

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it runs still, and drop what it said."""
        self.kill()
        self._errors.close()

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(AttributeError):
            self._channel.close()
        workers.hold(process.pid, signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run, and hold it still again."""
        workers.hold(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            workers.hold(self.pid, signal.SIGSTOP)

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        return machine.usage(self.pid).cpu

    def anonymous(self) -> int:
        """Return the bytes of anonymous memory."""
        return workers.anonymous(self.pid)

    # -- galleries --------------------------------------------------------------------------------

    def create(self, name: str, *, filtered: bool = False) -> str:
        """Make a gallery of the twin's dimension, and return its space."""
        wanted = gallery_pb2.Gallery(name=name)
        if filtered:
            wanted.metadata_keys.add(key=messages.KEY, type=gallery_pb2.METADATA_TYPE_INTEGER)
        made = self.stub.CreateGallery(pb.CreateGalleryRequest(gallery=wanted))
        space: str = made.gallery.space_id
        return space

    def delete(self, name: str) -> None:
        """Remove a gallery."""
        self.stub.DeleteGallery(pb.DeleteGalleryRequest(name=name))

    def gallery(self, name: str) -> gallery_pb2.Gallery:
        """Describe a gallery."""
        return self.stub.GetGallery(pb.GetGalleryRequest(name=name)).gallery

    def work_off(self, name: str, patience: float = 7200.0) -> WorkedOff:
        """Wait until no row waits for its graph, or until those that do are left to wait.

        Raises:
            RuntimeError: that took longer than `patience` seconds.
        """
        began = time.perf_counter()
        least, at = None, 0.0
        used, since = self.cpu(), began
        while (now := time.perf_counter()) < began + patience:
            debt = self.gallery(name).index_debt
            if least is None or debt < least:
                least, at = debt, now - began
            if not debt:
                return WorkedOff(at, 0)
            if now - since >= STEADY_SECONDS:
                cpu = self.cpu()
                if cpu - used <= STEADY_SHARE * (now - since):
                    return WorkedOff(at, least)
                used, since = cpu, now
            time.sleep(0.05)
        raise RuntimeError(f"the index of {name} is not done after {patience} s: {least} rows wait")

    def settle(self, *, asked: bool = False) -> None:
        """Wait until it has nothing left to do, or next to nothing where small calls come in."""
        share = STEADY_SHARE if asked else workers.IDLE_SHARE
        workers.await_idle(self.pid, 1.0, 600.0, share)

    # -- requests ---------------------------------------------------------------------------------

    def enrol_bodies(
        self,
        path: Path,
        name: str,
        space: str,
        items: Vectors,
        *,
        first: int = 0,
        batch: int = BATCH,
        buckets: Ids | None = None,
    ) -> Path:
        """Write the requests that enrol items, whose ids are their numbers from `first`."""
        return messages.keep(
            path,
            (
                messages.enrol(
                    name,
                    [
                        str(first + number)
                        for number in range(start, min(start + batch, len(items)))
                    ],
                    items[start : start + batch],
                    space,
                    None if buckets is None else buckets[start : start + batch].tolist(),
                )
                for start in range(0, len(items), batch)
            ),
        )

    def ask(self, bodies: Sequence[bytes], in_flight: int = 2) -> list[bytes]:
        """Have searches answered, and return the replies in order, with their prefixes.

        Raises:
            RuntimeError: one was not.
        """
        number = {id(body): place for place, body in enumerate(bodies)}
        with wire.connected(self.port, SEARCH) as opened:
            ended = wire.closed(
                opened, bodies, min(in_flight, len(bodies)), 600.0, most=len(bodies)
            )
        failed = [call.status for call in ended if call.status != wire.OK]
        if failed or len(ended) != len(bodies):
            raise RuntimeError(
                f"{len(ended)} of {len(bodies)} searches ended; failed: {failed[:3]}"
            )
        ended.sort(key=lambda call: number[id(call.body)])
        return [call.reply for call in ended]

    def recall(
        self,
        name: str,
        space: str,
        data: Data,
        ef: int,
        rows: int = CHECK_ROWS,
        *,
        kept: shared_pb2.Filter | None = None,
        truth: Ids | None = None,
        probes: Vectors | None = None,
    ) -> float:
        """Count recall in calls of so many probes; of `probes` and `truth` where given."""
        asked = data.probes if probes is None else probes
        bodies = [
            messages.search(name, asked[start : start + rows], space, ef, kept=kept)
            for start in range(0, len(asked), rows)
        ]
        answers = np.concatenate([messages.found(reply) for reply in self.ask(bodies)])
        return recall(answers, data.truth if truth is None else truth)
