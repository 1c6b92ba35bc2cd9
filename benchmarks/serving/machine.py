"""What Linux tells of running processes and of the machine: /proc, read and nothing else.

A server is known by its first process: those that this started, and those that these started,
are counted with it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# proc(5) counts the fields of /proc/PID/stat from 1; the first two are taken off here.
_PARENT, _UTIME, _STIME, _CUTIME, _CSTIME, _THREADS, _RSS = (
    place - 3 for place in (4, 14, 15, 16, 17, 20, 24)
)


@dataclass(frozen=True)
class Usage:
    """What a server's processes have used, and hold now."""

    cpu: float  # seconds, of user and system
    resident: int  # bytes; pages shared by several processes are counted in each
    threads: int


def cores() -> int:
    """Return the processors that this process, and what it starts, may use."""
    return len(os.sched_getaffinity(0))


def describe() -> str:
    """Return the machine in one line, without its name."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{cores()} cores, {model}, {platform.system()} {platform.machine()}"


def load() -> float:
    """Return the load average of the last minute; other work on the machine shows here."""
    return os.getloadavg()[0]


def usage(first: int) -> Usage:
    """Add up a process and all that it started."""
    cpu, resident, threads = 0, 0, 0
    for fields in _family(first).values():
        # Children that have ended and were waited for are in cutime and cstime.
        cpu += sum(int(fields[place]) for place in (_UTIME, _STIME, _CUTIME, _CSTIME))
        threads += int(fields[_THREADS])
        resident += int(fields[_RSS]) * _PAGE
    return Usage(cpu / _TICK, resident, threads)


def members(first: int) -> list[int]:
    """Return the ids of a process and of all that it started and that run still."""
    return list(_family(first))


def _family(first: int) -> dict[int, list[str]]:
    running: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        # The name in brackets may hold blanks.
        running[int(entry.name)] = text.rpartition(")")[2].split()
    family = {first: running[first]} if first in running else {}
    grown = True
    while grown:
        young = {
            process: fields
            for process, fields in running.items()
            if process not in family and int(fields[_PARENT]) in family
        }
        family.update(young)
        grown = bool(young)
    return family
