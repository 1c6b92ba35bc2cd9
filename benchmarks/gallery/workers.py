"""Processes that are measured, or that put load on others: asked by lines of JSON, one at a time.

In: a command and its arguments on standard input. Out: one line of JSON on standard output, and
nothing else there: what libraries print goes to standard error. Those that are not measured at the
moment are held still. Only the standard library in here, since peers' environments run it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.serving import machine

ROOT = Path(__file__).parents[2]
IDLE_SHARE = 0.05  # of one processor, below which a process counts as idle


def answer(handlers: Mapping[str, Callable[..., dict[str, Any] | None]]) -> None:
    """Answer commands until standard input ends; an exception is told, and the next is awaited."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        given = json.loads(line)
        try:
            found = handlers[given.pop("do")](**given) or {}
        except Exception as error:  # told to whoever asked, who decides
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=out, flush=True)


class Failed(RuntimeError):
    """A worker could not do what it was asked to."""


class Worker:
    """One such process.

    Args:
        name: in messages.
        module: that calls `answer`.
        flags: of it.
        python: interpreter of its environment; None takes this one.
    """

    def __init__(
        self, name: str, module: str, *flags: str, python: Path | str | None = None
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", module, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Have a command done.

        Raises:
            Failed: it failed, or the process ended.
        """
        self.begin(do, **given)
        return self.result()

    def begin(self, do: str, **given: Any) -> None:
        """Send a command whose `result` is read later."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Failed(f"{self.name} has ended; see its error above") from error

    def result(self) -> dict[str, Any]:
        """Wait for the answer to what was begun.

        Raises:
            Failed: it failed, or the process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} has ended; see its error above")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Failed(f"{self.name}: {found['error']}")
        return found

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run, and hold it still again."""
        hold(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            hold(self.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End it and all that it started."""
        hold(self.pid, signal.SIGCONT)
        family = machine.members(self.pid)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            print(f"-- {self.name} had to be killed", file=sys.stderr, flush=True)
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def hold(first: int, number: int) -> None:
    """Send a signal, such as SIGSTOP, to a process and to all that it started."""
    for process in machine.members(first):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def anonymous(first: int) -> int:
    """Return the bytes of anonymous memory of a process and of all that it started.

    Pages mapped from files are not among them: they can be dropped and read again.
    """
    total = 0
    for process in machine.members(first):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    total += int(line.split()[1]) << 10
    return total


def await_idle(
    first: int, seconds: float = 1.0, patience: float = 60.0, share: float = IDLE_SHARE
) -> bool:
    """Wait until a process and all that it started have used at most a share of one processor.

    Returns:
        Whether that came within `patience` seconds.
    """
    until = time.monotonic() + patience
    while time.monotonic() < until:
        before = machine.usage(first).cpu
        time.sleep(seconds)
        if machine.usage(first).cpu - before <= share * seconds:
            return True
    return False
