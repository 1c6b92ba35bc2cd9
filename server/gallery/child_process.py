"""One call of a library in a child process, for calls that stop every thread of theirs meanwhile.

The child is a copy of this process with one thread, makes the call, and ends. What may go wrong
when a process with threads is copied is met as follows. Handlers of other libraries at a fork:
OpenBLAS waits in its own for threads that multiply, for ever; so the copy is made by clone(2),
which runs none. The interpreter: a child of one thread would wait for the others as soon as it is
asked to give way, and it is asked between any two steps of Python, and wherever a call gives the
interpreter's lock away; so the child takes no such step, but begins right in the call, which has to
be one of a C library that keeps the lock. Locks that other threads held,
such as the allocator's: a child that does not end in time is killed. Files that the parent holds
locked, such as the data folder: the child dies with it, or the next server would be refused.

Nothing comes back but files: the caller looks at what the call wrote.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import operator
import os
import signal
import time
from collections.abc import Callable

_STACK = 4 << 20  # bytes; of the child alone
_POLL = 0.005  # seconds
_PR_SET_PDEATHSIG = 1


def call(function: Callable[[], object], patience: float) -> None:
    """Call `function` in a child; wait at most `patience` seconds.

    It must not be Python (`functools.partial` of a library's function is not) and must keep the
    interpreter's lock: os.mkdir, which does not, would wait for ever now and then. Whether the call
    itself went well is not known when this returns.

    Raises:
        OSError: no child could be made, or it crashed or was too late.
    """
    child = _clone(function)
    end = time.monotonic() + patience
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise OSError(f"the child process {child} was not done after {patience:.0f} s")
        time.sleep(_POLL)
    if os.WIFSIGNALED(status):
        raise OSError(f"the child process {child} was ended by signal {os.WTERMSIG(status)}")


def _clone(function: Callable[[], object]) -> int:
    # PyDLL keeps the interpreter's lock, so that nothing changes while the copy is made.
    library = ctypes.PyDLL(None, use_errno=True)
    clone = library.clone
    clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.py_object)
    # Steps of C only, one after the other.
    dies_too = functools.partial(library.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
    calls: tuple[Callable[[], object], ...] = (dies_too, function)
    both: Callable[[], object] = functools.partial(list, map(operator.call, calls))
    entry = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p)
    with mmap.mmap(-1, _STACK) as stack:
        start = ctypes.addressof(ctypes.c_char.from_buffer(stack))
        child = int(clone(entry, start + _STACK - 64, signal.SIGCHLD, both))
        if child < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return child
