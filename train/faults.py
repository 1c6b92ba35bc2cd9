"""What is wrong with single items of a data set: raised at once by a training, gathered by a check.

In: sentences with their places, as the readers find them. Out: a `DataError`, or a list. So the
readers are written once, and a check can name every broken file where a training stops at the
first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from twinserve.errors import DataError


@dataclass(frozen=True)
class Fault:
    """One item that cannot be used, and is left out where faults are gathered."""

    kind: str  # a stable word, such as broken_image
    message: str
    item: str = ""  # that it is about, in short


class Faults:
    """Raises the first fault, unless it is to gather them.

    Args:
        gather: keep all of them instead, and let the reader go on without the item.
    """

    def __init__(self, gather: bool = False) -> None:
        self._gather = gather
        self.found: list[Fault] = []
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, message: str, *, item: str = "", allowed: int = 0) -> None:
        """Note an item that cannot be used.

        Args:
            kind: of the fault.
            message: what is wrong, where, and what to do.
            item: which, in short, for a list of many.
            allowed: so many of this kind are left out in silence.

        Raises:
            DataError: above what is allowed, where faults are not gathered.
        """
        self.found.append(Fault(kind, message, item))
        self._counts[kind] += 1
        if self._counts[kind] > allowed and not self._gather:
            raise DataError(message)
