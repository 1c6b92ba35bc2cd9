"""The curriculum: which miner chooses at which step, from easy to hard.

In: the config's `mining`, such as "semi_hard" or "random,semi_hard:2,batch_hard:2". Out: stages,
each with the share of the run at which it ends. The names alone, no torch: the config checks itself
with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from twinserve.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One miner, for a while."""

    mining: str
    until: float  # share of the run's steps at which the next one takes over; 1 for the last


def stages(mining: str) -> tuple[Stage, ...]:
    """Read `NAME[:WEIGHT],...`: each lasts for its weight's share of the steps; 1 by default.

    Raises:
        ConfigError: an empty name, or a weight that is no number above 0.
    """
    names, weights = [], []
    for part in mining.split(","):
        name, _, weight = part.partition(":")
        names.append(name.strip())
        try:
            weights.append(float(weight) if weight else 1.0)
        except ValueError:
            weights.append(0.0)
        if not names[-1] or not 0 < weights[-1] < float("inf"):
            raise ConfigError(
                f"mining is {mining!r}, where {part!r} is no stage; write names separated by "
                "commas, each with a weight above 0 where it is not to last as long as the others: "
                "random,semi_hard:2,batch_hard:2"
            )
    total = sum(weights)
    ends = [end / total for end in itertools.accumulate(weights)]
    ends[-1] = 1.0
    return tuple(Stage(name, end) for name, end in zip(names, ends, strict=True))


def at(curriculum: Sequence[Stage], progress: float) -> str:
    """Return the miner at a share of the run's steps done, 0 at its begin."""
    return next(
        (stage.mining for stage in curriculum if progress < stage.until), curriculum[-1].mining
    )
