"""What a check of data finds: sentences that say what to do, and whether a training may go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinserve.errors import DataError
from twinserve.feed import Rows
from twinserve.manifest import ImageInput, InputContract, TextInput
from twinserve.train.components import MAX_SHARED

Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """Something wrong with the data, or with what is asked of them."""

    kind: str  # a stable word, such as duplicates_across_parts
    stops: bool  # it would spoil a training
    message: str  # what is wrong, and what to do
    items: tuple[str, ...] = ()  # all that it is about


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    facts: dict[str, Any]  # plain values, as JSON takes them
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether nothing would spoil a training."""
        return not any(finding.stops for finding in self.findings)

    def refuse(self) -> None:
        """Stop a training that would be spoiled.

        Raises:
            DataError: the first finding that stops, and how many more there are.
        """
        stops = [finding.message for finding in self.findings if finding.stops]
        if stops:
            more = f" (and {len(stops) - 1} more: twinserve data check)" if stops[1:] else ""
            raise DataError(f"{stops[0]}{more}")

    def to_dict(self, most_items: int | None = None) -> dict[str, Any]:
        """Return plain values, with so many items of each finding, as data.json holds them."""
        shown = [
            {
                "kind": finding.kind,
                "stops": finding.stops,
                "message": finding.message,
                "count": len(finding.items),
                "items": list(finding.items[:most_items]),
            }
            for finding in self.findings
        ]
        return {**self.facts, "findings": shown}


def check_vectors(rows: Rows, contract: InputContract, facts: dict[str, Any]) -> list[Finding]:
    """Find vectors that are all zeros, and note shape and norms; of other inputs, nothing."""
    if isinstance(contract, ImageInput | TextInput):
        return []
    norms = np.linalg.norm(np.asarray(rows).reshape(len(rows), -1).astype(np.float64), axis=1)
    facts["vectors"] = {"shape": list(contract.shape), "norms": spread(norms)}
    zero = np.flatnonzero(norms == 0)
    if not len(zero):
        return []
    return [
        Finding(
            "zero_vectors",
            len(zero) > MAX_SHARED * len(norms),
            f"{len(zero)} of {len(norms)} vectors are all zeros, as where one is missing: leave "
            "them out",
            tuple(map(str, zero.tolist())),
        )
    ]


def spread(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    array = np.asarray(values)
    found = {"least": array.min(), "median": np.median(array), "most": array.max()}
    whole = np.issubdtype(array.dtype, np.integer)
    return {
        name: int(value) if whole and value == int(value) else round(float(value), 6)
        for name, value in found.items()
    }


def number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def stand(chosen: np.ndarray[Any, Any]) -> str:
    return "stands" if int(chosen.sum()) == 1 else "stand"
