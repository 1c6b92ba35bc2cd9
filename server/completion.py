"""A result that one thread sets and a coroutine awaits, whoever drives that coroutine.

The hot calls run without an event loop: the thread that read a request from the wire begins its
coroutine, and the thread that ends what it waits for (a runner's, a preparer's) goes on with it,
so that no request pays for being handed from thread to thread. The other calls are tasks of
asyncio's loop. A `Completion` can be awaited in both; `drive` is the first way.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Completion(Generic[Value]):
    """A value or an exception, set once; what comes later is dropped.

    Args:
        abandoned: called when the waiter gives up before there is a result, in the thread that
            gave up; it must not block.
    """

    __slots__ = ("_abandoned", "_callbacks", "_done", "_error", "_given_up", "_lock", "_value")

    def __init__(self, abandoned: Callable[[], None] | None = None) -> None:
        self._abandoned = abandoned
        self._callbacks: list[Callable[[], None]] = []
        self._done = False
        self._error: BaseException | None = None
        self._given_up = False
        self._lock = threading.Lock()
        self._value: Value

    @property
    def done(self) -> bool:
        """Whether there is a result, or nobody waits for one any more."""
        return self._done

    def set_result(self, value: Value) -> None:
        """Give the value; goes on with whoever waits, in this thread."""
        with self._lock:
            if self._done:
                return
            self._value = value
            self._done = True
            self._abandoned = None
        self._call()

    def set_error(self, error: BaseException) -> None:
        """Give the exception that the waiter is to meet."""
        with self._lock:
            if self._done:
                return
            self._error = error
            self._done = True
            self._abandoned = None
        self._call()

    def abandon(self) -> None:
        """Stop waiting: the waiter meets asyncio.CancelledError, unless the result was faster."""
        with self._lock:
            if self._done:
                return
            self._given_up = True
            self._done = True
            # Let go of in every case: it knows the work, which knows this.
            abandoned, self._abandoned = self._abandoned, None
        if abandoned is not None:
            abandoned()
        self._call()

    def when_done(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called in the thread that sets the result; False where that was before.

        Then the callback is not called.
        """
        with self._lock:
            if self._done:
                return False
            self._callbacks.append(callback)
            return True

    def result(self) -> Value:
        """Return the value, or raise the exception; only once done, and an exception only once.

        Raises:
            asyncio.CancelledError: given up, or the exception was raised to somebody before.
        """
        if self._given_up:
            # Made here: one that was kept would hold the frames that it passed, and they it.
            raise asyncio.CancelledError
        error, self._error = self._error, None
        if error is not None:
            # Handed over: the error holds the frames that it passes, and they hold this.
            self._given_up = True
            try:
                raise error
            finally:
                del error
        return self._value

    def __await__(self) -> Generator[Any, None, Value]:
        if not self._done:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                yield self  # to `drive`
            else:
                yield from self._on_loop(loop)
        return self.result()

    def _on_loop(self, loop: asyncio.AbstractEventLoop) -> Generator[Any, None, None]:
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        if not self.when_done(lambda: _tell(loop, wake)):
            return
        try:
            yield from waiter
        except asyncio.CancelledError:
            self.abandon()
            raise

    def _call(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Elsewhere(Completion[None]):
    """Complete in another thread, once somebody waits: before, it might be too soon.

    Args:
        in_thread: has work done in a thread of its own.
    """

    __slots__ = ("_in_thread",)

    def __init__(self, in_thread: Callable[[Callable[[], None]], object]) -> None:
        super().__init__()
        self._in_thread = in_thread

    def when_done(self, callback: Callable[[], None]) -> bool:
        waits = super().when_done(callback)
        if waits:
            self._in_thread(lambda: self.set_result(None))
        return waits


class Driven(Generic[Value]):
    """A coroutine that goes on in whichever thread ends what it waits for; see `drive`."""

    __slots__ = ("_coroutine", "_ended", "_given_up", "_waits_for")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Value],
        ended: Callable[[Value | None, BaseException | None], None],
    ) -> None:
        self._coroutine = coroutine
        self._ended = ended
        self._waits_for: Completion[Any] | None = None
        self._given_up = False

    def abandon(self) -> None:
        """Nobody wants the answer: what the coroutine waits for, now or next, is given up."""
        self._given_up = True
        waits_for = self._waits_for
        if waits_for is not None:
            waits_for.abandon()

    def _go_on(self) -> None:
        loop = asyncio._get_running_loop()
        if loop is None:
            self._steps()
            return
        # News came from the loop's own thread; what is driven must not take itself for its task.
        asyncio._set_running_loop(None)
        try:
            self._steps()
        finally:
            asyncio._set_running_loop(loop)

    def _steps(self) -> None:
        while True:
            try:
                waits_for: Completion[Any] = self._coroutine.send(None)
            except StopIteration as stop:
                self._ended(stop.value, None)
                return
            except BaseException as error:
                self._ended(None, error)
                return
            self._waits_for = waits_for
            if waits_for.when_done(self._go_on):
                # An `abandon` of another thread either saw what is waited for, or is seen here.
                if self._given_up:
                    waits_for.abandon()
                return


def drive(
    coroutine: Coroutine[Any, Any, Value],
    ended: Callable[[Value | None, BaseException | None], None],
) -> Driven[Value]:
    """Run a coroutine in this thread up to its first wait, and on from there in others.

    Args:
        coroutine: awaits nothing but `Completion`s.
        ended: told the value, or the exception, in the thread that came to the end.
    """
    driven = Driven(coroutine, ended)
    driven._go_on()
    return driven


def in_executor(executor: Executor, work: Callable[[], Value]) -> Completion[Value]:
    """Have work done in a thread of an executor; what nobody waits for any more is not begun.

    Raises:
        RuntimeError: the executor was shut down.
    """
    completion: Completion[Value] = Completion()

    def run() -> None:
        if completion.done:
            return
        try:
            value = work()
        except BaseException as error:
            completion.set_error(error)
        else:
            completion.set_result(value)

    executor.submit(run)
    return completion


def _tell(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
    # A closed loop means that the server has stopped, and nobody waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(wake)
