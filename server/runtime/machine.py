"""What this machine gives to this process: processors, memory, instructions, files, GPUs.

In: the files of /proc and of the control groups. Out: plain dataclasses, for choosing how many
threads run a twin and for `twinserve doctor`. Never the host's figures: a container that was given
two processors of 64 runs worse with 64 threads than with two.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# Instructions that decide which kernels run, by their names in /proc/cpuinfo (x86, then Arm).
_INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_int8",),
    "DOT": ("asimddp",),
    "I8MM": ("i8mm",),
    "SVE": ("sve",),
}
# A limit of the first control groups that means none, and any above it.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Processors:
    """How many processors there are, and how many of them are ours."""

    host: int
    affinity: int  # that this process may run on
    quota: float | None  # processors' worth of time of the control group; None without a limit

    @property
    def usable(self) -> int:
        """How many to use; of a quota, its whole processors and the begun one."""
        return max(1, self.affinity if self.quota is None else min(self.affinity, self._ceiling))

    @property
    def bound_by(self) -> str:
        """Which of the two holds this process down: quota, affinity, or neither: host."""
        if self.quota is not None and self._ceiling < self.affinity:
            return "quota"
        return "affinity" if self.affinity < self.host else "host"

    @property
    def _ceiling(self) -> int:
        assert self.quota is not None
        return math.ceil(self.quota)


@dataclass(frozen=True)
class Memory:
    """Bytes of memory."""

    total: int
    available: int
    limit: int | None  # of the control group; None without one

    @property
    def granted(self) -> int:
        """How much of it this process may have in all; 0 where the machine does not say."""
        return self.total if self.limit is None else min(self.total, self.limit)


@dataclass(frozen=True)
class Gpu:
    """One graphics card, as its driver names it."""

    index: int
    name: str
    memory: int  # bytes
    driver: str


@dataclass(frozen=True)
class Folder:
    """How fast a folder keeps what is written to it."""

    path: Path
    free: int  # bytes
    syncs_per_second: float  # of 4 KiB each, one after the other


def processors() -> Processors:
    """Count the processors of this process: its affinity, within its control groups' quota."""
    return Processors(
        host=os.cpu_count() or 1,
        affinity=len(os.sched_getaffinity(0)),
        quota=quota(GROUPS, _text(MEMBERSHIP)),
    )


def quota(groups: Path, membership: str) -> float | None:
    """Return the processors' worth of time that the control groups grant; None without a limit.

    Args:
        groups: where they are mounted.
        membership: as in /proc/self/cgroup; the least of our group and of those above it holds.
    """
    limits = []
    for folder in _folders(groups, membership, "cpu"):
        try:  # version 2: "max 100000" or "150000 100000"
            allowed, period = _text(folder / "cpu.max").split()
            if allowed != "max":
                limits.append(int(allowed) / int(period))
        except ValueError:
            pass
        try:
            micros = int(_text(folder / "cpu.cfs_quota_us"))
            if micros > 0:
                limits.append(micros / int(_text(folder / "cpu.cfs_period_us")))
        except ValueError:
            pass
    return min(limits, default=None)


def memory() -> Memory:
    """Read how much memory there is, and how much of it this process may use."""
    known = dict(re.findall(r"(\w+):\s+(\d+) kB", _text(Path("/proc/meminfo"))))
    return Memory(
        total=int(known.get("MemTotal", 0)) << 10,
        available=int(known.get("MemAvailable", 0)) << 10,
        limit=memory_limit(GROUPS, _text(MEMBERSHIP)),
    )


def memory_limit(groups: Path, membership: str) -> int | None:
    """Return the bytes that the control groups allow; None without a limit."""
    limits = []
    for folder in _folders(groups, membership, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name).strip()
            if text.isdigit() and int(text) < _NO_LIMIT:
                limits.append(int(text))
    return min(limits, default=None)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(_text(Path("/proc/self/statm")).split()[1]) * os.sysconf("SC_PAGESIZE")


def give_back_memory() -> None:
    """Hand what was freed back to the system, which the C library keeps for itself otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    if trim is not None:
        trim(0)


def keep_for_good() -> None:
    """Take all objects that there are from the garbage collector, once a server has started.

    They stay until it ends, and looking through them again and again held all calls up: of a tiny
    net under load the 99th percentile was 43 ms, and 21 without them (docs/serving.md).
    """
    gc.collect()
    gc.freeze()


def instructions(cpuinfo: str | None = None) -> tuple[str, ...]:
    """Name the instruction sets of this processor that decide how fast a twin runs."""
    text = _text(Path("/proc/cpuinfo")) if cpuinfo is None else cpuinfo
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return tuple(name for name, any_of in _INSTRUCTIONS.items() if flags.intersection(any_of))


def model_name() -> str:
    """What the processor calls itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else "unknown"


def open_files() -> tuple[int, int]:
    """Return how many files this process may open, and to how many it may raise that."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def shared_memory() -> int:
    """Bytes free for shared memory between processes; 0 without a place for it."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0


def gpus() -> tuple[Gpu, ...]:
    """Ask NVIDIA's driver for its cards; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    fields = "index,name,memory.total,driver_version"
    try:
        answer = subprocess.run(
            [command, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=3,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(answer.stdout)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's lines of index, name, mebibytes and driver."""
    cards = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[0].isdigit():
            mebibytes = int(parts[2]) if parts[2].isdigit() else 0
            cards.append(Gpu(int(parts[0]), parts[1], mebibytes << 20, parts[3]))
    return tuple(cards)


def folder(path: Path, seconds: float = 0.3) -> Folder:
    """Measure a folder, or the nearest one above it that is there, by writing and syncing.

    Raises:
        OSError: it cannot be written to, or is no folder.
    """
    place = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    count = 0
    with tempfile.NamedTemporaryFile(dir=place, prefix=".twinserve-doctor-") as file:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fsync(file.fileno())
            count += 1
        took = time.perf_counter() - began
    return Folder(path, shutil.disk_usage(place).free, count / took)


def _folders(groups: Path, membership: str, controller: str) -> list[Path]:
    """Our control group of a controller and all above it, in both versions and any mount.

    Inside a container the mount may begin at our own group, whose path from the host's root is not
    there: then the root is it.
    """
    roots = {groups: "/", groups / "unified": "/", groups / controller: "/"}
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            roots[groups] = roots[groups / "unified"] = path
        elif controller in names.split(","):
            roots[groups / controller] = roots[groups / names] = path
    found = []
    for root, path in roots.items():
        ours = Path(path.lstrip("/"))
        found += [root / part for part in (ours, *ours.parents) if (root / part).is_dir()]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
