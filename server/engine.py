"""One served twin: raw inputs in, embeddings out, each row in whatever batch it rode.

Ties together admission, preparation, the batcher and the runner. It knows nothing of gRPC and
nothing of galleries. `Engine.embed` waits for nothing but `Completion`s, so that it may be driven
by the thread that read the call as well as awaited on asyncio's loop. An input that cannot be used
fails alone: its place in the reply holds the error, and the others go on.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from twinserve import distance
from twinserve.distance import Metric
from twinserve.errors import InternalFault, InvalidInput, TwinserveError, ZeroVector
from twinserve.manifest import Manifest, TextInput, truncated_space_id
from twinserve.server import inputs
from twinserve.server.afterwards import Afterwards
from twinserve.server.batching.admission import ROW_TOKENS, Admission
from twinserve.server.batching.batcher import AGEING, Batcher, Observer, Ride
from twinserve.server.batching.costs import Measured, RunCosts
from twinserve.server.callers import Caller
from twinserve.server.completion import Completion
from twinserve.server.config import Limits
from twinserve.server.inputs import ImageBytes, Prepared, RawInput, Ready, Text, Vector
from twinserve.server.runtime.runner import Runner

Outcome = Vector | TwinserveError

# Characters of a call's texts from which they are tokenized in threads: some 500 tokens, which take
# a tenth of a millisecond, as much as handing them over.
_FEW_CHARACTERS = 2000
# Of a text, for the first guess of its tokens: languages written in words have some four.
_TOKEN_CHARACTERS = 6


@dataclass(frozen=True)
class Embedded:
    """The answer to some inputs, in their order."""

    outcomes: tuple[Outcome, ...]  # float32 [dimension], or what was wrong with the input
    space_id: str
    preprocess: float  # seconds
    ride: Ride | None  # of the largest batch; None when no model ran
    token_counts: tuple[int, ...] = ()  # of texts before they were cut, 0 for other inputs
    truncated: tuple[bool, ...] = ()

    @property
    def errors(self) -> dict[int, TwinserveError]:
        """The failed inputs by index."""
        return {i: o for i, o in enumerate(self.outcomes) if isinstance(o, TwinserveError)}


class Engine:
    """A loaded twin with its batcher.

    Args:
        runner: the twin.
        name: under which it is served.
        admission: shared by all engines of the server.
        preparers: threads for decoding and tokenizing.
        preparer_count: how many they are.
        observer: told of batches.
        limits: of one input.
        max_batch, max_batch_tokens: of one run.
        runners: runs at a time.
        measured: runs of warm-up, from which the table of costs begins.
        ageing: seconds after which a waiting call goes before its turn.
        afterwards: where the thread that reads calls puts off what it runs itself.
    """

    def __init__(
        self,
        runner: Runner,
        name: str,
        *,
        admission: Admission,
        preparers: Executor,
        preparer_count: int,
        observer: Observer,
        limits: Limits,
        max_batch: int,
        max_batch_tokens: int,
        runners: int,
        measured: Iterable[Measured] = (),
        ageing: float = AGEING,
        afterwards: Afterwards | None = None,
    ) -> None:
        self.runner = runner
        self.name = name
        # Told of every answered call, in the thread that answers it; a shadow run's (shadow.py).
        self.mirror: Callable[[Sequence[RawInput], Embedded], None] | None = None
        self._admission = admission
        self._preparers = preparers
        self._preparer_count = preparer_count
        self._limits = limits
        self.batcher = Batcher(
            runner.run,
            max_batch=max_batch,
            runners=runners,
            observer=observer,
            max_tokens=None if runner.tokenizer is None else max_batch_tokens,
            costs=RunCosts(measured),
            ageing=ageing,
            afterwards=afterwards,
            run_lone=runner.run_lone,
            are_sound=functools.partial(distance.are_sound, metric=self.manifest.metric),
            name=name,
        )

    @property
    def manifest(self) -> Manifest:
        """The twin's manifest."""
        return self.runner.manifest

    @property
    def version(self) -> str:
        """The name@version that replies carry."""
        return f"{self.name}@{self.manifest.version}"

    @functools.cached_property
    def spaces(self) -> dict[str, int]:
        """The spaces that this twin embeds into, each with its dimension; its full one first."""
        manifest = self.manifest
        cut = [d for d in manifest.truncations if d != manifest.dimension]
        return {manifest.space_id: manifest.dimension} | {
            truncated_space_id(manifest.space_id, dimension): dimension for dimension in cut
        }

    def space_of(self, dimension: int, field: str = "options.dimensions") -> str:
        """Return the space of the first `dimension` coordinates, which `field` asked for.

        Raises:
            InvalidInput: a dimension that the twin was not trained for.
        """
        for space_id, known in self.spaces.items():
            if known == dimension:
                return space_id
        raise InvalidInput(
            f"{field.rpartition('.')[2]} is {dimension}; model {self.name} gives "
            f"{sorted(self.spaces.values())}",
            field=field,
        )

    async def embed(
        self, raws: Sequence[RawInput], caller: Caller, dimension: int | None = None
    ) -> Embedded:
        """Embed some inputs; ready vectors are checked and returned.

        Args:
            raws: at least one.
            caller: whose call it is.
            dimension: of the embeddings; None is the twin's full one.

        Raises:
            QueueFull, ClientOverShare, DeadlineExceeded, InternalFault: faults of the call as a
                whole; refusals come before anything is decoded.
            LimitExceeded: a call that no empty server would take.
            InvalidInput: a dimension that the twin does not give.
        """
        wanted = self.manifest.dimension if dimension is None else dimension
        space_id = self.space_of(wanted)
        lengths = self._least_lengths(raws)
        with self._admission.admit(_counted(lengths), caller.client) as held:
            if caller.deadline is not None:
                # Ready vectors wait for no run, however long the queue is.
                to_run = [
                    length
                    for raw, length in zip(raws, lengths, strict=True)
                    if not isinstance(raw, Ready)
                ]
                if to_run:
                    self.batcher.foresee(len(to_run), max(to_run), caller)
            began = time.perf_counter()
            prepared = await self._prepare(raws, wanted, space_id)
            preprocess = time.perf_counter() - began
            rows = [one.row for one in prepared if isinstance(one, Prepared)]
            if self.runner.tokenizer is not None:
                held.settle(_counted([len(row) for row in rows]))
            ride = None
            finished: list[Outcome] = []
            if rows:
                vectors, ride = await self.batcher.submit(rows, caller)
                finished = self._finish(vectors, wanted, ride)
        # Every call passes here, most with one input: plain loops cost half of what tuples of
        # generators do.
        ran = iter(finished)
        outcomes: list[Outcome] = []
        counts: list[int] = []
        cuts: list[bool] = []
        for one in prepared:
            if isinstance(one, Prepared):
                outcomes.append(next(ran))
                counts.append(one.token_count)
                cuts.append(one.truncated)
            else:
                outcomes.append(one)
                counts.append(0)
                cuts.append(False)
        embedded = Embedded(tuple(outcomes), space_id, preprocess, ride, tuple(counts), tuple(cuts))
        mirror = self.mirror
        if mirror is not None:
            mirror(raws, embedded)
        return embedded

    async def close(self) -> None:
        """Let running work finish, then end the threads; may be called again."""
        await asyncio.to_thread(self.batcher.close)

    def _least_lengths(self, raws: Sequence[RawInput]) -> list[int]:
        """Return the tokens that each input has at least, before it is tokenized; 1 of others."""
        contract = self.manifest.input
        if not isinstance(contract, TextInput):
            return [1] * len(raws)
        return [
            min(1 + len(raw.text) // _TOKEN_CHARACTERS, contract.max_tokens)
            if isinstance(raw, Text)
            else 1
            for raw in raws
        ]

    async def _prepare(
        self, raws: Sequence[RawInput], dimension: int, space_id: str
    ) -> list[Prepared | Outcome]:
        """Return per input its row, or the ready vector, or what is wrong with it.

        Pictures are decoded, and texts of some size tokenized, in threads; a call of many is spread
        over all of them.
        """

        def one(raw: RawInput) -> Prepared | Outcome:
            try:
                if isinstance(raw, Ready):
                    return inputs.check_ready(raw, dimension, space_id, self.manifest.metric)
                return inputs.prepare(raw, self.manifest, self._limits, self.runner.tokenizer)
            except TwinserveError as error:
                return error

        characters = 0
        for raw in raws:
            if isinstance(raw, Text):
                characters += len(raw.text)
            elif isinstance(raw, ImageBytes):
                characters = _FEW_CHARACTERS + 1
                break
        if characters <= _FEW_CHARACTERS:
            return [one(raw) for raw in raws]
        size = -(-len(raws) // self._preparer_count)
        parts = [raws[at : at + size] for at in range(0, len(raws), size)]
        return await _in_threads(self._preparers, parts, one)

    def _finish(self, vectors: Vector, dimension: int, ride: Ride) -> list[Outcome]:
        """Truncate, and refuse what no metric can compare: per row."""
        if ride.sound and dimension == vectors.shape[1]:
            return list(vectors)
        vectors = distance.truncated(vectors, dimension)  # [batch, dimension]
        try:
            distance.check_vectors(vectors, self.manifest.metric)
        except TwinserveError:
            return [self._checked(vector) for vector in vectors]
        return list(vectors)

    def _checked(self, vector: Vector) -> Outcome:
        if not np.isfinite(vector).all():
            return InternalFault(
                "the model gave a NaN or an infinity for this input; report it to who trained it"
            )
        if self.manifest.metric is Metric.COSINE and not vector.any():
            return ZeroVector(
                "the model maps this input to zero, which has no direction under cosine; "
                "is the input blank? Send another"
            )
        return vector


def _counted(lengths: Sequence[int]) -> int:
    """Return what admission counts for texts of so many tokens, or for rows of length 1."""
    return sum(-(-length // ROW_TOKENS) for length in lengths)


def _in_threads(
    threads: Executor,
    parts: Sequence[Sequence[RawInput]],
    one: Callable[[RawInput], Prepared | Outcome],
) -> Completion[list[Prepared | Outcome]]:
    """Prepare parts of a call side by side; the thread that ends last goes on with the call."""
    # A call that was cancelled is not prepared to its end: nobody counts it any more.
    given_up = threading.Event()
    done: list[list[Prepared | Outcome]] = [[] for _ in parts]
    left = len(parts)
    lock = threading.Lock()
    completion: Completion[list[Prepared | Outcome]] = Completion(given_up.set)

    def prepare(place: int) -> None:
        nonlocal left
        try:
            done[place] = [one(raw) for raw in parts[place] if not given_up.is_set()]
        except BaseException as error:
            given_up.set()
            completion.set_error(error)
            return
        with lock:
            left -= 1
            last = not left
        if last:
            completion.set_result([entry for part in done for entry in part])

    for place in range(len(parts)):
        threads.submit(prepare, place)
    return completion
