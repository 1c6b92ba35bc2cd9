"""Which texts share a run: a run is padded to its longest, so one long text makes all others pay.

In: the lengths of the rows that are to be run now. Out: how they are cut into runs so that the
whole takes the least time, as far as a run costs its tokens, padding included, and a fixed price,
which the model's own measured runs tell (`costs.RunCosts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# What a run costs beside its tokens, told in tokens, where nothing was measured. Measured with
# all-MiniLM-L6-v2 on one core and on two: 3.4 to 4 ms a run, 0.31 ms a token, which makes 11 to 13.
RUN_TOKENS = 16
# Lengths are told apart by this many steps up to the longest, which bounds the work of a cut.
_STEPS = 32


def padded(lengths: Sequence[int]) -> int:
    """Return the tokens of one run of these rows, padding included."""
    return len(lengths) * max(lengths, default=0)


def cut(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    max_rows: int = 1 << 30,
    run_tokens: float = RUN_TOKENS,
) -> list[int]:
    """Cut rows into runs of the least total cost, `run_tokens` and the padded tokens of each.

    Args:
        lengths: of the rows in tokens, rising; at least one.
        max_tokens: most tokens of one run, padding included; a longer row runs alone.
        max_rows: most rows of one run.
        run_tokens: what a run costs beside its tokens, told in tokens.

    Returns:
        the number of rows of each run; their sum is len(lengths).
    """
    step = max(1, -(-lengths[-1] // _STEPS))
    groups = sorted(Counter(-(-length // step) * step for length in lengths).items())
    ends = [0]  # ends[g]: rows in the first g groups
    for _, count in groups:
        ends.append(ends[-1] + count)
    # best[g]: the least cost of the first g groups, and where their last run begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for g, (longest, _) in enumerate(groups, 1):
        fitting = min(max_rows, max(1, max_tokens // longest))
        options = []
        for first in range(g):
            rows = ends[g] - ends[first]
            runs = -(-rows // fitting)
            options.append((best[first][0] + runs * run_tokens + rows * longest, first))
        best.append(min(options))
    counts: list[int] = []
    g = len(groups)
    while g:
        first = best[g][1]
        rows = ends[g] - ends[first]
        fitting = min(max_rows, max(1, max_tokens // lengths[ends[g] - 1]))
        # In equal parts: a small rest would leave first, and nearly every run would be a rest.
        for left in range(-(-rows // fitting), 0, -1):
            counts.append(-(-rows // left))
            rows -= counts[-1]
        g = first
    return counts[::-1]
