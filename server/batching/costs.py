"""What a run costs, by rows and length: measured at warm-up, kept current by every run.

In: the seconds of runs. Out: what a run to come should take, the size above which runs gain no more
per row, and what a queue of rows will take. Runs fall into cells by rows and length, each with an
exponential mean that no single odd run can move far. Over all cells lies a line, fixed price plus
price per token, so that a size that never ran is told from those that did. Nothing is kept on disk:
another machine has other costs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

# Weight of the newest run in its cell's mean, and the most that one run counts for, as a multiple
# of that mean: a run that the machine held up says little of the next.
_NEWEST, _MOST = 0.1, 3.0
# Runs between two fits of the line.
_REFIT = 32
# The fixed price is told from sizes that are at least so many times apart.
_APART = 4
# A run is large enough once its fixed price is this share of it, and it takes this many seconds:
# below them nobody feels the wait, and runs are cheaper to hand over when they are fewer.
_FIXED_SHARE, _SHORT_RUN = 0.03, 0.005
# Seconds of a row alone up to which a net is nearly free: handing the row to another thread and its
# embedding back costs as much.
NEARLY_FREE = 0.001


@dataclass(frozen=True)
class Measured:
    """The time of one run."""

    rows: int
    longest: int  # tokens that each row was padded to; 1 where rows are no texts
    seconds: float


@dataclass(slots=True)
class _Cell:
    tokens: float  # mean of rows x longest
    seconds: float
    ratio: float = 1.0  # of its seconds to the line's


class RunCosts:
    """The measured table; may be asked and told from any thread.

    Args:
        measured: runs of warm-up; those of one cell count by the quickest.
    """

    def __init__(self, measured: Iterable[Measured] = ()) -> None:
        self._lock = threading.Lock()
        self._cells: dict[tuple[int, int], _Cell] = {}
        self._fixed = 0.0
        self._per_token = 0.0
        self._told_apart = False
        self._untold = 0
        # Of all runs of late, whatever their size.
        self.recent_seconds = 0.0
        self.recent_rows = 0.0
        for one in measured:
            cell = self._cells.get(_place(one.rows, one.longest))
            if cell is None or one.seconds < cell.seconds:
                self._cells[_place(one.rows, one.longest)] = _Cell(
                    one.rows * one.longest, one.seconds
                )
        self._fit()

    @property
    def known(self) -> bool:
        """Whether anything was measured yet."""
        return self._per_token > 0 or self._fixed > 0

    @property
    def fixed_tokens(self) -> float:
        """The fixed price of a run in tokens (rows where rows are no texts); 0 if unknown."""
        return self._fixed / self._per_token if self._told_apart else 0.0

    def tell(self, rows: int, longest: int, seconds: float) -> None:
        """Take in a run that was measured."""
        tokens = rows * longest
        with self._lock:
            self.recent_seconds += _NEWEST * (seconds - self.recent_seconds)
            self.recent_rows += _NEWEST * (rows - self.recent_rows)
            cell = self._cells.get(_place(rows, longest))
            if cell is None:
                # The line's word for it counts as the first run, where there is one.
                expected = self._line(tokens)
                if expected:
                    seconds = min(seconds, _MOST * expected)
                self._cells[_place(rows, longest)] = _Cell(tokens, seconds)
                self._fit()
                return
            most = _MOST * cell.seconds * max(1.0, tokens / cell.tokens)
            cell.seconds += _NEWEST * (min(seconds, most) - cell.seconds)
            cell.tokens += _NEWEST * (tokens - cell.tokens)
            line = self._line(cell.tokens)
            cell.ratio = cell.seconds / line if line else 1.0
            self._untold += 1
            if self._untold >= _REFIT:
                self._fit()

    def seconds(self, rows: int, longest: int = 1) -> float:
        """Return what a run should take; 0 where nothing was measured yet."""
        if rows <= 0:
            return 0.0
        cell = self._cells.get(_place(rows, longest))
        return self._line(rows * longest) * (cell.ratio if cell else 1.0)

    def queue_seconds(self, tokens: float, runners: int) -> float:
        """Return what so many tokens (rows where rows are no texts) take in the largest runs."""
        return tokens * self._per_token / runners

    def enough(self, longest: int = 1) -> float:
        """Return the rows above which a run gains next to nothing per row; infinity if unknown."""
        if not self._told_apart:
            return float("inf")
        by_share = self._fixed / (_FIXED_SHARE * self._per_token)
        by_time = (_SHORT_RUN - self._fixed) / self._per_token
        return max(1.0, by_share / longest, by_time / longest)

    def tokens_in(self, seconds: float) -> float:
        """Return the tokens (rows where rows are no texts) of a run of so long; 0 if unknown."""
        return max(0.0, seconds - self._fixed) / self._per_token if self._per_token else 0.0

    def largest_seconds(self, most: float) -> float:
        """Return what a run takes that is large enough, or has so many tokens; 0 if unknown."""
        return self._line(min(self.enough(), most))

    def _line(self, tokens: float) -> float:
        return self._fixed + self._per_token * tokens

    def _fit(self) -> None:
        """Lay the line through the cells, each counted once, by least squares of relative error."""
        self._untold = 0
        cells = [cell for cell in self._cells.values() if cell.seconds > 0]
        if not cells:
            return
        # Divided by its seconds, each cell says 1 = fixed * u + per_token * v.
        u = [1 / cell.seconds for cell in cells]
        v = [cell.tokens / cell.seconds for cell in cells]
        uu, vv = sum(a * a for a in u), sum(a * a for a in v)
        uv = sum(a * b for a, b in zip(u, v, strict=True))
        sizes = [cell.tokens for cell in cells]
        self._told_apart = max(sizes) >= _APART * min(sizes)
        determinant = uu * vv - uv * uv
        fixed = per_token = -1.0
        if determinant > 1e-6 * uu * vv:
            fixed = (sum(u) * vv - sum(v) * uv) / determinant
            per_token = (sum(v) * uu - sum(u) * uv) / determinant
        if fixed < 0 or per_token <= 0:
            # No fixed price, or too few sizes to tell it: all of it by the token.
            fixed, per_token = 0.0, sum(v) / vv
        self._fixed, self._per_token = fixed, per_token
        for cell in cells:
            cell.ratio = cell.seconds / self._line(cell.tokens)


def _place(rows: int, longest: int) -> tuple[int, int]:
    """Return the cell: sizes of up to a factor of 1.5 apart share one."""
    return _step(rows), _step(longest)


def _step(size: int) -> int:
    bits = size.bit_length()
    # Two steps an octave: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, ...
    return 2 * bits + (size >> (bits - 2) & 1 if bits > 1 else 0)
