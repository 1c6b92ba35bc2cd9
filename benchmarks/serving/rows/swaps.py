"""Does any call fail, or get a mixed-up answer, while versions of a twin are swapped below it?

Clients embed without a pause, half of them by an alias and half by the model's name, while the next
version is loaded, the alias moves to it, and the one before is unloaded, over and over. Every
answer is held against onnxruntime's own of the version that it names.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np

from benchmarks.serving import forms, making, servers, wire
from benchmarks.serving.peers.twin import Twin
from benchmarks.serving.report import Aim, Line, Report
from benchmarks.serving.servers import Server
from benchmarks.serving.subjects import Subject
from twinserve import manifest
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import model_service_pb2, model_service_pb2_grpc

TABLE = "Swaps under load"
ALIAS = "live"
INPUTS, IN_FLIGHT, CONNECTIONS = 16, 8, 4
TOLERANCE = 1e-5  # of a coordinate, between batches of one row and of many
LOAD_SECONDS, UNLOAD_SECONDS, ANSWER_SECONDS = 300.0, 60.0, 60.0
MIB = 2**20


@dataclass(frozen=True)
class Span:
    """From when to when a version may answer: from asking for it until its unload was answered."""

    version: str  # name@version
    begin: float
    end: float = math.inf


@dataclass
class Answers:
    """Sorts answers as they come.

    Args:
        inputs: which one each body holds.
        vectors: by name@version, the right embeddings: float32 [inputs, dimension].
        spans: of the versions that live or did until just now; replaced whole, by another thread.
    """

    inputs: Mapping[bytes, int]
    vectors: Mapping[str, forms.Embedding]
    spans: tuple[Span, ...] = ()
    right: Counter[str] = field(default_factory=Counter)  # by name@version
    failed: Counter[int] = field(default_factory=Counter)  # by status
    mixed: int = 0

    def sort(self, call: wire.Call) -> None:
        """Count a call as right, failed, or mixed up."""
        if call.status != wire.OK:
            self.failed[call.status] += 1
            return
        reply = pb.EmbedResponse.FromString(call.reply[5:])
        version = reply.model_version
        lived = any(
            span.version == version and span.begin <= call.ended and call.sent <= span.end
            for span in self.spans
        )
        if lived and self._is_right(version, reply, self.inputs[call.body]):
            self.right[version] += 1
        else:
            self.mixed += 1

    def _is_right(self, version: str, reply: pb.EmbedResponse, number: int) -> bool:
        (result,) = reply.results
        found = np.array(result.embedding.values, np.float32)
        expected = self.vectors[version][number]
        return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE)


def measure(subject: Subject, report: Report, times: int, work: Path) -> None:
    """Swap two versions of a twin so often, under load.

    Args:
        subject: the first version.
        report: that a line is added to.
        times: how often.
        work: folder for made twins.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        versions = _versions(subject, folder, work)
        inputs = [forms.given(subject, number) for number in range(INPUTS)]
        names = (ALIAS, subject.manifest.name)
        bodies = [_body(subject, given, name) for given in inputs for name in names]
        numbers = {body: place // 2 for place, body in enumerate(bodies)}
        answers = Answers(numbers, {_name(one): _raw(one, inputs, folder) for one in versions})
        flags = ("--model-dir", str(folder))
        with servers.ours(versions[0].path, flags, still=False) as ours:
            changes = Changes(ours, versions, answers)
            with _asking(ours, bodies, answers):
                resident = [ours.usage().resident]
                began = time.perf_counter()
                for turn in range(1, times + 1):
                    changes.swap(turn)
                    resident.append(ours.usage().resident)
                seconds = time.perf_counter() - began
    failed = answers.failed.total()
    report.lines.append(
        Line(
            TABLE,
            str(subject),
            f"{times:,} swaps, {IN_FLIGHT} in flight",
            "ours",
            {
                "answers": f"{answers.right.total():,}",
                "failed": str(failed),
                "mixed up": str(answers.mixed),
                "swaps a minute": f"{60 * times / seconds:.0f}",
                "MiB before": f"{resident[0] / MIB:.0f}",
                "MiB after a tenth": f"{resident[math.ceil(times / 10)] / MIB:.0f}",
                "MiB after": f"{resident[-1] / MIB:.0f}",
            },
            aims=(
                Aim(f"no call failed ({failed})", failed == 0),
                Aim(f"no answer mixed up ({answers.mixed})", answers.mixed == 0),
            ),
            windows={
                "resident": resident,
                "right": dict(answers.right),
                "failed": {str(status): count for status, count in answers.failed.items()},
            },
        )
    )


class Changes:
    """Loads and unloads on a running server, and tells `answers` which version may answer."""

    def __init__(self, server: Server, versions: Sequence[Subject], answers: Answers) -> None:
        self._stub = model_service_pb2_grpc.ModelServiceStub(
            grpc.insecure_channel(f"127.0.0.1:{server.port}")
        )
        self._versions = versions
        self._answers = answers
        answers.spans = (Span(_name(versions[0]), time.perf_counter()),)
        first = versions[0].manifest
        self._stub.SetAlias(
            model_service_pb2.SetAliasRequest(alias=ALIAS, name=first.name, version=first.version)
        )

    def swap(self, turn: int) -> None:
        """Make the `turn`th swap, from 1: load the next, and unload the one before."""
        new = self._versions[turn % len(self._versions)]
        old = self._versions[(turn - 1) % len(self._versions)]
        *before, current = self._answers.spans
        coming = Span(_name(new), time.perf_counter())
        self._answers.spans = (*before[-1:], current, coming)
        self._stub.LoadModel(
            model_service_pb2.LoadModelRequest(file=new.path.name, aliases=[ALIAS]),
            timeout=LOAD_SECONDS,
        )
        self._stub.UnloadModel(
            model_service_pb2.UnloadModelRequest(
                name=old.manifest.name, version=old.manifest.version
            ),
            timeout=UNLOAD_SECONDS,
        )
        gone = replace(current, end=time.perf_counter())
        self._answers.spans = (*before[-1:], gone, coming)


@contextlib.contextmanager
def _asking(server: Server, bodies: Sequence[bytes], answers: Answers) -> Iterator[None]:
    """Keep calls in flight from a thread of their own, and sort what comes back."""
    over = threading.Event()
    turn = 0

    def answered(connection: wire.Connection, call: wire.Call) -> None:
        nonlocal turn
        load.ended.clear()  # millions, otherwise
        answers.sort(call)
        if not over.is_set() and call.status != wire.LOST:
            turn += 1
            body = bodies[turn % len(bodies)]
            connection.begin(wire.Call(body, time.perf_counter()))

    with server.connected(CONNECTIONS) as connections:
        load = wire.Load(connections, answered)
        now = time.perf_counter()
        first = [
            (now, connections[place % CONNECTIONS], bodies[place % len(bodies)])
            for place in range(IN_FLIGHT)
        ]
        # Nobody knows how long the swaps take.
        bounds = {"last": now, "patience": math.inf}
        thread = threading.Thread(target=load.run, args=(first,), kwargs=bounds, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(ANSWER_SECONDS)
        if thread.is_alive():
            raise RuntimeError(f"calls were not answered within {ANSWER_SECONDS:g} s")


def _versions(subject: Subject, folder: Path, work: Path) -> tuple[Subject, Subject]:
    """Put two versions into a folder: other weights where we can make them, else other numbers."""
    first = Subject(subject.name, subject.precision, folder / "first.onnx")
    shutil.copyfile(subject.path, first.path)
    path = folder / "second.onnx"
    if subject.name not in making.NAMES:
        return first, making.renumbered(first, "2", path)
    shutil.copyfile(making.made(work, subject.name, version=2).path, path)
    return first, Subject(subject.name, subject.precision, path)


def _name(subject: Subject) -> str:
    return f"{subject.manifest.name}@{subject.manifest.version}"


def _body(subject: Subject, given: bytes, model: str) -> bytes:
    inputs = forms.contract_inputs(subject, [given])
    return wire.prefixed(pb.EmbedRequest(model=model, inputs=inputs).SerializeToString())


def _raw(subject: Subject, inputs: Sequence[bytes], folder: Path) -> forms.Embedding:
    """Embed inputs with onnxruntime alone: float32 [inputs, dimension]."""
    tokenizer, text = None, manifest.read_tokenizer(subject.path)
    if text is not None:
        tokenizer = folder / "tokenizer.json"
        tokenizer.write_text(text)
    twin = Twin(str(subject.path), 1, False, None if tokenizer is None else str(tokenizer))
    return np.concatenate([twin.run([twin.row(one)]) for one in inputs])
