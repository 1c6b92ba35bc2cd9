"""Finding the breadth of a search (ef) that just reaches a recall, so that speeds compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Steps of about a fifth, so that what is chosen overshoots little.
BREADTHS = (
    *(10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512, 640, 768, 1024, 1536, 2048),
)


@dataclass(frozen=True)
class Match:
    """The narrowest breadth that was found to reach a recall, and the recall it has."""

    ef: int
    recall: float

    def __str__(self) -> str:
        return f"{self.recall:.4f}"


def narrowest(recall: Callable[[int], float], target: float) -> Match:
    """Return the narrowest of `BREADTHS` with at least that recall, which grows with breadth.

    Where none reaches it, the widest, whose recall then says so.
    """
    low, high = 0, len(BREADTHS) - 1
    found: dict[int, float] = {}
    while low < high:
        middle = (low + high) // 2
        found[middle] = recall(BREADTHS[middle])
        if found[middle] >= target:
            high = middle
        else:
            low = middle + 1
    if low not in found:
        found[low] = recall(BREADTHS[low])
    return Match(BREADTHS[low], found[low])


class Recalls:
    """Recalls of one searcher by breadth, each measured once."""

    def __init__(self, measure: Callable[[int], float]) -> None:
        self._measure = measure
        self._known: dict[int, float] = {}

    def __call__(self, ef: int) -> float:
        """Return the recall at a breadth."""
        if ef not in self._known:
            self._known[ef] = self._measure(ef)
        return self._known[ef]

    def match(self, target: float) -> Match:
        """Return the narrowest breadth that reaches the target."""
        return narrowest(self, target)
