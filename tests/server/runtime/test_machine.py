"""What the machine gives to this process, in every form in which it is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinserve.server.runtime import machine
from twinserve.server.runtime.machine import Gpu, Processors

V1 = "9:name=systemd:/\n3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "150000 100000\n"}, "", 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 4.0),
        # The least of our own group and those above it.
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 3.0),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "300000 100000", "c/cpu.max": "50000 100000"}, "0::/a/b\n", 3.0),
        (
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            V1,
            2.0,
        ),
        ({}, "", None),
    ],
)
def test_the_control_groups_quota_is_read(
    files: dict[str, str], membership: str, quota: float | None, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert machine.quota(tmp_path, membership) == quota


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory/docker/abc/memory.limit_in_bytes": "4096\n"}, 4096),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_the_control_groups_memory_limit_is_read(
    files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert machine.memory_limit(tmp_path, V1) == limit


@pytest.mark.parametrize(
    ("processors", "usable", "bound_by"),
    [
        (Processors(64, 64, None), 64, "host"),
        (Processors(64, 4, None), 4, "affinity"),
        (Processors(64, 64, 1.5), 2, "quota"),
        (Processors(64, 64, 0.2), 1, "quota"),
        (Processors(64, 4, 8.0), 4, "affinity"),
    ],
)
def test_the_narrower_of_affinity_and_quota_binds(
    processors: Processors, usable: int, bound_by: str
) -> None:
    assert processors.usable == usable
    assert processors.bound_by == bound_by


def test_no_more_processors_are_used_than_this_process_may_use() -> None:
    command = "from twinserve.server.runtime import machine; print(machine.processors().usable)"
    taskset = shutil.which("taskset")
    assert taskset
    out = subprocess.run(
        [taskset, "-c", "0", sys.executable, "-c", command], capture_output=True, check=True
    )
    assert out.stdout == b"1\n"


def test_instructions_are_named_whatever_the_processor_calls_them() -> None:
    assert machine.instructions("flags\t\t: fpu avx2 avx512f avx_vnni\n") == (
        "AVX2",
        "AVX512",
        "VNNI",
    )
    assert machine.instructions("Features\t: fp asimddp i8mm\n") == ("DOT", "I8MM")
    assert machine.instructions("processor : 0\n") == ()


def test_cards_are_read_from_what_the_driver_prints() -> None:
    text = "0, NVIDIA L4, 23034, 560.35.03\n1, NVIDIA L4, [N/A], 560.35.03\nno card\n"
    assert machine.parse_gpus(text) == (
        Gpu(0, "NVIDIA L4", 23034 << 20, "560.35.03"),
        Gpu(1, "NVIDIA L4", 0, "560.35.03"),
    )


def test_a_folder_that_is_not_there_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    measured = machine.folder(tmp_path / "not" / "yet", seconds=0.02)
    assert measured.syncs_per_second > 0
    assert measured.free > 0
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match=str(file)):
        machine.folder(file)
    with pytest.raises(NotADirectoryError):
        machine.folder(file / "below")


@pytest.mark.parametrize(("limit", "granted"), [(None, 1000), (400, 400), (2000, 1000)])
def test_a_container_grants_its_limit_of_the_memory_there_is(
    limit: int | None, granted: int
) -> None:
    assert machine.Memory(1000, 900, limit).granted == granted


def test_resident_memory_counts_what_was_touched() -> None:
    machine.give_back_memory()  # what others freed would be taken without being counted
    before = machine.resident()
    held = bytearray(b"x") * (64 << 20)
    assert machine.resident() - before > 60 << 20
    del held
    machine.give_back_memory()


def test_what_is_kept_for_good_is_not_looked_through_again() -> None:
    # In a process of its own: what is kept stays kept.
    program = (
        "import gc\n"
        "from twinserve.server.runtime import machine\n"
        "before = len(gc.get_objects())\n"
        "machine.keep_for_good()\n"
        "print(before, gc.get_freeze_count(), len(gc.get_objects()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, kept, left = map(int, ran.stdout.split())
    assert kept > 0.8 * before
    assert left < 0.1 * before
