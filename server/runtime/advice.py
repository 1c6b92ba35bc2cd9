"""What could be better on a machine, each with what to do: conclusions of `twinserve doctor`.

Pure functions of what was found. What is said of one precision against another was measured in
turns on this machine, never guessed from its instructions.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinserve.server.runtime.diagnosis import Advice, Provider, Timed
from twinserve.server.runtime.machine import Folder, Gpu, Processors
from twinserve.server.runtime.providers import CPU, CUDA, Device

# Fewer than these are worth a word.
_OPEN_FILES = 4096
_SYNCS = 200.0
_FREE_DISK = 1 << 30


def advice_on_machine(
    processors: Processors, open_files: int, folder: Folder | None
) -> list[Advice]:
    """Say what of processors, files and disk holds a server back."""
    advice = []
    if processors.quota is not None and processors.bound_by == "quota":
        if processors.quota != int(processors.quota):
            advice.append(
                Advice(
                    f"the quota is {processors.quota:g} processors: the begun one is taken away in "
                    "the middle of runs, which shows in the slowest answers",
                    "give the container a whole number of processors",
                )
            )
        advice.append(
            Advice(
                f"the quota grants {processors.quota:g} of {processors.affinity} processors",
                "raise it (docker --cpus, or limits.cpu) for more rows a second",
            )
        )
    elif processors.bound_by == "affinity":
        advice.append(
            Advice(
                f"this process may run on {processors.affinity} of {processors.host} processors",
                "widen its affinity (taskset, docker --cpuset-cpus) for more rows a second",
            )
        )
    if open_files < _OPEN_FILES:
        advice.append(
            Advice(
                f"{open_files} files may be open, connections included",
                f"raise the limit to {_OPEN_FILES} or more (ulimit -n, LimitNOFILE=)",
            )
        )
    if folder is not None and folder.syncs_per_second < _SYNCS:
        advice.append(
            Advice(
                f"{folder.path} is on a disk that syncs {folder.syncs_per_second:.0f} times a "
                "second; each Enroll waits for one",
                "enroll many items a call, or keep --data-dir on a faster disk",
            )
        )
    if folder is not None and folder.free < _FREE_DISK:
        advice.append(
            Advice(
                f"{folder.free >> 20} MB are free for {folder.path}",
                "make room: galleries stop to take items when the disk is full",
            )
        )
    return advice


def advice_on_precision(
    twins: Sequence[Timed], instructions: Sequence[str], device: Device | None
) -> list[Advice]:
    """Say which precision measured faster here, or what would have to be measured."""
    if device is None:
        return []
    advice = []
    for first in twins:
        others = [t for t in twins if t.space_id == first.space_id and t.path != first.path]
        if first.faster is not None:
            continue  # told with the first of its space
        for other in others:
            if other.faster is None:
                continue
            advice.append(_on_pair(first, other, instructions))
        if not others and first.precision == "fp32":
            precision = "int8" if device.provider == CPU else "fp16"
            advice.append(
                Advice(
                    f"no {precision} form of {first.path.name} to compare it with",
                    f"export it with --precision fp32,{precision}, and run doctor again",
                )
            )
    return advice


def _on_pair(first: Timed, other: Timed, instructions: Sequence[str]) -> Advice:
    assert other.faster is not None
    because = ""
    if other.precision == "int8":
        quick = [name for name in ("AMX", "VNNI", "I8MM", "DOT") if name in instructions]
        because = (
            f": this processor multiplies bytes by {quick[0]}"
            if quick
            else ": this processor has no VNNI, which would make more of it"
        )
    found = (
        f"{other.precision} runs {other.faster:.2f} times as many rows a second as "
        f"{first.precision}{because}"
    )
    if other.faster > 1.05:
        return Advice(found, f"serve {other.path.name}; its gate has compared its embeddings")
    return Advice(found, f"serve {first.path.name}")


def advice_on_cards(cards: Sequence[Gpu], known: Sequence[Provider]) -> list[Advice]:
    """Say what keeps a card from being used."""
    cuda = next(provider for provider in known if provider.name == CUDA)
    if not cards or cuda.missing is None:
        return []
    return [
        Advice(
            f"there is a {cards[0].name}, but {cuda.missing}",
            "install twinserve[gpu] in place of twinserve[cpu], with the libraries that it names",
        )
    ]
