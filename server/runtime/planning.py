"""How many runs of one twin at a time, on how many threads, spinning or not: the plan, and why.

In: what the operator asked for, the processors, and a bench that can time two settings side by
side. Out: one plan with the trials that led to it. What it knows of onnxruntime: all runs of a
session share its threads, so R runs on a session of T threads keep R callers and T - 1 helpers
busy; hence R runs fill n processors with T = n - R + 1. Where many runs of few threads carry most,
a run that goes alone would leave processors idle: a second session with all threads carries it
sooner. Of a net that is nearly free these are all runs of the thread that reads calls
(`batching.batcher`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from twinserve.errors import ConfigError
from twinserve.server.batching.costs import NEARLY_FREE

# A setting must beat the one before it by this much; less is the noise of a second's measuring.
MARGIN = 1.05
# Or it must answer a single row this much faster, where both run as many rows a second.
FASTER = 0.9
# CPU seconds that a setting may burn after a run that nothing follows. onnxruntime's own spinning
# burns 13 ms of a core; a short spin is over in a tenth of one.
IDLE_SECONDS = 0.001


class Spinning(enum.Enum):
    """Whether a session's threads turn in a loop, rather than sleep, while they wait for work."""

    OFF = "off"
    SHORT = "short"  # for `sessions.SHORT_SPIN` microseconds, then they sleep
    RUN = "run"  # while a run goes on, and not a moment longer
    ON = "on"  # for as long as onnxruntime thinks right


@dataclass(frozen=True)
class Setting:
    """One way to run a twin."""

    runners: int  # runs at a time
    threads: int  # of the session, a caller's included
    spinning: Spinning = Spinning.OFF

    def __str__(self) -> str:
        text = f"{self.runners} × {self.threads}"
        return text if self.spinning is Spinning.OFF else f"{text} spinning {self.spinning.value}"


@dataclass(frozen=True)
class Asked:
    """What the operator wants; None, and 0, leave it to measuring.

    Raises:
        ConfigError: a negative number.
    """

    runners: int = 0
    threads: int = 0
    spinning: Spinning | None = None

    def __post_init__(self) -> None:
        for name in ("runners", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"--{name} is {getattr(self, name)}; give 1 or more, or 0 for what measures "
                    "best"
                )


@dataclass(frozen=True)
class Duel:
    """Two settings timed in turns, A B A B, so that a busy machine slows both alike."""

    ratio: float  # rows/s of the second over the first's, at the loads of a busy server
    rows_per_second: tuple[float, float]
    latency: tuple[float, float]  # seconds of one row alone


class Bench(Protocol):
    """Times settings of one twin."""

    def duel(self, first: Setting, second: Setting) -> Duel | None:
        """Time two settings side by side; None where there is no time for it."""

    def alone(self, first: Setting, second: Setting) -> tuple[float, float] | None:
        """Seconds of one row that comes after a pause; None where there is no time for it."""

    def idle(self, setting: Setting) -> float | None:
        """CPU seconds burnt after a run that nothing follows; None where there is no time."""

    def keep(self, *settings: Setting) -> None:
        """Let go of all settings but these."""


@dataclass(frozen=True)
class Trial:
    """What came of one comparison."""

    first: Setting  # the best so far
    second: Setting
    duel: Duel | None  # None where they were not timed
    second_is_better: bool
    verdict: str

    def __str__(self) -> str:
        kept, other = self.first, self.second
        if self.second_is_better:
            kept, other = other, kept
        return f"{kept} rather than {other}: {self.verdict}"


@dataclass(frozen=True)
class Plan:
    """How a twin is run."""

    setting: Setting
    why: str
    trials: tuple[Trial, ...] = ()
    lone: Setting | None = None  # of a run beside which no other goes; None where it is as all

    @property
    def runners(self) -> int:
        """Runs at a time."""
        return self.setting.runners

    @property
    def threads(self) -> int:
        """Threads of the session, a caller's included."""
        return self.setting.threads

    @property
    def spinning(self) -> Spinning:
        """Whether idle threads spin."""
        return self.setting.spinning

    def __str__(self) -> str:
        beside = f", {self.lone} for lone runs" if self.lone else ""
        return f"{self.setting}{beside} ({self.why})"


def spinning_asked(text: str) -> Spinning | None:
    """Read `--spinning`; None leaves it to measuring.

    Raises:
        ConfigError: a word other than auto, off, short, run or on.
    """
    if text == "auto":
        return None
    try:
        return Spinning(text)
    except ValueError:
        raise ConfigError(
            f"--spinning {text} is unknown; give auto, off, short, run or on"
        ) from None


def candidates(asked: Asked, processors: int) -> tuple[Setting, ...]:
    """List the settings worth timing, the one that answers a single row soonest first.

    Args:
        asked: what the operator fixed is the same in all of them.
        processors: to be kept busy, and no more.
    """
    spinning = asked.spinning or Spinning.OFF
    if asked.runners:
        counts = [asked.runners]
    elif asked.threads:
        counts = [max(1, processors - asked.threads + 1)]
    else:
        counts = [count for count in range(1, processors + 1) if processors % count == 0]
    settings = []
    for count in counts:
        threads = asked.threads or max(1, processors - count + 1)
        # Nobody spins where there are no helpers.
        settings.append(Setting(count, threads, spinning if threads > 1 else Spinning.OFF))
    return tuple(settings)


def first(asked: Asked, processors: int) -> Plan:
    """Return the plan to begin with, before anything is timed."""
    return Plan(candidates(asked, processors)[0], "not measured")


def choose(asked: Asked, processors: int, bench: Bench, twice: bool = True) -> Plan:
    """Time the settings against each other and keep the best.

    More runs at a time must carry more rows or answer one sooner; as many rows, within the noise,
    are enough where lone runs can have a session of their own. Then a spin, short or while a run
    goes on, must carry more rows, and endless spinning must besides cost nothing while there is no
    work. A net that is nearly free runs in the thread that reads calls, from which helpers that
    spin would take. Of other nets lone runs have all threads where these answer a row sooner; they
    spin while it runs, since waking a helper can take as long as the operator it is woken for.

    Args:
        asked: what the operator fixed.
        processors: to be kept busy.
        bench: times settings.
        twice: whether the twin may be in memory twice, once for lone runs.
    """
    settings = candidates(asked, processors)
    trials: list[Trial] = []
    best = settings[0]
    # Where lone runs can have their own session, more runs at a time lose nothing; and threads that
    # share no operator do not wait for each other, as when pictures are decoded beside them.
    least = 1 / MARGIN if twice and not asked.threads else MARGIN
    carried = 1.0  # of what the setting that carried most does
    for challenger in settings[1:]:
        kept = _better(best, challenger, bench, trials, least=least / min(carried, 1.0))
        if kept is not best and (duel := trials[-1].duel):
            carried = min(1.0, carried) * duel.ratio
        best = kept
    latencies = _latencies(trials)
    nearly_free = min(latencies.values(), default=1.0) <= NEARLY_FREE
    if asked.spinning is None and best.threads > 1 and not nearly_free:
        for spinning in (Spinning.SHORT, Spinning.RUN, Spinning.ON):
            challenger = replace(best, spinning=spinning)
            idle = bench.idle(challenger)
            if idle is None or idle > IDLE_SECONDS:
                verdict = "no time" if idle is None else f"burns {1000 * idle:.1f} ms after a run"
                trials.append(Trial(best, challenger, None, False, verdict))
                bench.keep(best)
            else:
                best = _better(best, challenger, bench, trials, sooner_counts=False)
    lone, sooner = None, ""
    if twice and not asked.threads:
        if nearly_free:
            lone = _carrying_most(asked, processors, best, bench, trials)
        else:
            lone, sooner = _soonest(asked, processors, best, bench)
    return Plan(best, _why(asked, best, trials) + sooner, tuple(trials), lone)


def _soonest(
    asked: Asked, processors: int, best: Setting, bench: Bench
) -> tuple[Setting | None, str]:
    """Find what answers a lone row sooner than the setting chosen does, and say how much."""
    for spinning in [asked.spinning] if asked.spinning else [Spinning.RUN, Spinning.OFF]:
        challenger = Setting(1, processors, spinning)
        if processors == 1 or (challenger.threads, spinning) == (best.threads, best.spinning):
            continue
        taken = bench.alone(best, challenger)
        if taken is not None and taken[1] < FASTER * taken[0]:
            bench.keep(best, challenger)
            part = taken[1] / taken[0]
            return challenger, f"; {challenger} answers a lone row in {part:.2f} of the time"
        bench.keep(best)
    return None, ""


def _latencies(trials: list[Trial]) -> dict[int, float]:
    """Return the seconds of one row alone by the threads of its session, the least of all duels."""
    found: dict[int, float] = {}
    for trial in trials:
        if trial.duel is not None:
            pair = trial.first, trial.second
            for setting, seconds in zip(pair, trial.duel.latency, strict=True):
                found[setting.threads] = min(seconds, found.get(setting.threads, seconds))
    return found


def _carrying_most(
    asked: Asked, processors: int, chosen: Setting, bench: Bench, trials: list[Trial]
) -> Setting | None:
    """Find the threads that carry most where one run goes at a time; None where it is as chosen."""
    first = best = Setting(1, chosen.threads, chosen.spinning)
    while best.threads < processors:
        more = Setting(1, min(2 * best.threads, processors), asked.spinning or Spinning.OFF)
        if _better(best, more, bench, trials, beside=chosen) == best:
            break
        best = more
    return None if best == first else best


def _better(
    best: Setting,
    challenger: Setting,
    bench: Bench,
    trials: list[Trial],
    *,
    least: float = MARGIN,
    sooner_counts: bool = True,
    beside: Setting | None = None,
) -> Setting:
    others = [beside] if beside else []
    duel = bench.duel(best, challenger)
    if duel is None:
        trials.append(Trial(best, challenger, None, False, "no time"))
        bench.keep(best, *others)
        return best
    sooner = duel.latency[1] / duel.latency[0]
    wins = True
    if duel.ratio >= least:
        verdict = f"{duel.ratio:.2f} times the rows"
    elif sooner_counts and duel.ratio > 1 / MARGIN and sooner < FASTER:
        verdict = f"as many rows, one row in {sooner:.2f} of the time"
    else:
        wins, verdict = False, f"the other has {duel.ratio:.2f} times the rows"
    trials.append(Trial(best, challenger, duel, wins, verdict))
    kept = challenger if wins else best
    bench.keep(kept, *others)
    return kept


def _why(asked: Asked, best: Setting, trials: Sequence[Trial]) -> str:
    if not trials:
        return "as asked" if asked.runners or asked.threads else "the only way here"
    return "; ".join(map(str, trials))
