"""What a run costs, by rows and length: measured at warm-up, kept current by every run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """The time of one run."""

    rows: int
    longest: int  # tokens that each row was padded to; 1 where rows are no texts
    seconds: float
