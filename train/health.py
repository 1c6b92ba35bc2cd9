"""Is the training still alive? The figures of recent steps tell when embeddings collapse.

In: the figures of every step. Out: a sentence that says what happened and what to do, or none. A
twin that gives every input the same embedding has genuine and impostor distances near 0; a triplet
loss is then its margin, with no gradient to leave by, so no patience helps.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from twinserve.distance import Metric
from twinserve.train.config import TrainConfig
from twinserve.train.objective import Figures

logger = logging.getLogger(__name__)

# So many steps are looked at, and no fewer: a young twin's distances are small for a few dozen.
WINDOW = 50
# Distances count as near 0 below this share of the margin, where the loss has one,
_NEAR_OF_MARGIN = 0.1
# else below these: of unit vectors, cosines above 0.99.
_NEAR = {Metric.COSINE: 0.01, Metric.EUCLIDEAN: 0.05}
# A triplet loss this near to its margin, relative to it, in every step of the window, is stuck.
_AT_MARGIN = 0.03


class CollapseAlarm:
    """Watches a training's figures, and warns in the log once."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._recent: collections.deque[Figures] = collections.deque(maxlen=WINDOW)
        self._warned = False

    def note(self, figures: Figures) -> None:
        """Take in the figures of one step."""
        self._recent.append(figures)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen lately, as plain data."""
        recent = [dataclasses.astuple(figures) for figures in self._recent]
        return {"recent": recent, "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._recent.extend(Figures(*figures) for figures in state["recent"])
        self._warned = state["warned"]

    def check(self) -> None:
        """Log a warning if the embeddings collapse, unless it was logged before."""
        if self._warned or len(self._recent) < WINDOW:
            return
        sentence = collapse(tuple(self._recent), self._config)
        if sentence:
            logger.warning(sentence)
            self._warned = True


def collapse(recent: Sequence[Figures], config: TrainConfig) -> str | None:
    """Say whether embeddings collapse, and what to do about it; None while they do not.

    Args:
        recent: figures of consecutive steps, at best `WINDOW` of them. Steps whose batch had no
            genuine or no impostor pair say nothing.
        config: of the training.
    """
    of_margin = config.loss in ("contrastive", "triplet")
    near = _NEAR_OF_MARGIN * config.margin if of_margin else _NEAR[Metric(config.metric)]
    # A NaN is below nothing.
    told = [f for f in recent if f.genuine >= 0 and f.impostor >= 0]
    if not told:
        return None
    genuine = sum(f.genuine for f in told) / len(told)
    impostor = sum(f.impostor for f in told) / len(told)
    seen = (
        f"over the last {len(told)} steps genuine distances averaged {genuine:.3g} and impostor "
        f"ones {impostor:.3g}"
    )
    if all(max(f.genuine, f.impostor) < near for f in told):
        return f"the embeddings collapse to one point: {seen}. {_advice(config)}"
    stuck = config.loss == "triplet" and all(
        abs(f.loss - config.margin) <= _AT_MARGIN * config.margin for f in told
    )
    if stuck:
        return (
            f"the triplet loss stays at its margin of {config.margin:g}, as it does where "
            f"embeddings collapse: {seen}. {_advice(config)}"
        )
    return None


def _advice(config: TrainConfig) -> str:
    """Say what to change, nearest at hand first."""
    first = config.mining.partition(",")[0].partition(":")[0]
    if config.loss == "triplet" and first == "batch_hard":
        easier = "Begin with easier triplets (mining=semi_hard,batch_hard)"
    elif config.loss == "supervised_contrastive":
        easier = "Raise temperature"
    else:
        easier = "Begin with loss=supervised_contrastive (multiple_negatives for pairs)"
    return f"{easier}, lower learning_rate, or see whether labels or inputs are all alike"
