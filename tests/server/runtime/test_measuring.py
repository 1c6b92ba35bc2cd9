"""Timing settings side by side, and within a budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from twinserve.feed import Rows
from twinserve.server.runtime import measuring
from twinserve.server.runtime.measuring import Budget, SettingsBench
from twinserve.server.runtime.planning import Asked, Setting, Spinning, choose
from twinserve.server.runtime.running import Outputs

ROW = np.zeros(3, np.float32)
ONE_RUN, TWO_RUNS = Setting(1, 2), Setting(2, 1)
PATIENT = Budget(seconds=60.0, turns=3, opening=60.0)


class Sleeping:
    """A twin that takes a fixed time for a run and some more for each row."""

    def __init__(self, price: float, per_row: float, alone: bool = False) -> None:
        self._price, self._per_row = price, per_row
        self._one_at_a_time = threading.Lock() if alone else None
        self.runs = 0

    def run(self, rows: Rows) -> Outputs:
        self.runs += 1
        if self._one_at_a_time:
            with self._one_at_a_time:
                time.sleep(self._price + self._per_row * len(rows))
        else:
            time.sleep(self._price + self._per_row * len(rows))
        return np.zeros((len(rows), 2), np.float32)


def bench(
    make: Callable[[Setting], Sleeping], budget: Budget = PATIENT, opening: float = 0.0
) -> tuple[SettingsBench, list[Setting]]:
    opened: list[Setting] = []

    def open_with(setting: Setting) -> Sleeping:
        opened.append(setting)
        return make(setting)

    return SettingsBench(open_with, ROW, budget, (ONE_RUN, make(ONE_RUN), opening)), opened


def test_two_runs_at_a_time_win_where_they_do_not_hinder_each_other() -> None:
    timed, _ = bench(lambda _: Sleeping(0.004, 0.001))
    plan = choose(Asked(spinning=Spinning.OFF), 2, timed)
    assert plan.setting == TWO_RUNS
    duel = plan.trials[0].duel
    assert duel is not None
    assert 1.2 < duel.ratio < 2.5


def test_two_runs_at_a_time_lose_where_a_run_has_a_price_that_they_pay_twice() -> None:
    shared = Sleeping(0.02, 0.0005, alone=True)
    timed, _ = bench(lambda _: shared)
    assert choose(Asked(spinning=Spinning.OFF), 2, timed).setting == ONE_RUN


def test_nothing_is_opened_for_a_twin_that_opens_slowly() -> None:
    timed, opened = bench(
        lambda _: Sleeping(0.0, 0.001), Budget(seconds=60.0, opening=1.0), opening=5.0
    )
    plan = choose(Asked(), 2, timed)
    assert plan.setting == ONE_RUN
    assert opened == []
    assert "no time" in plan.why


def test_a_slow_twin_is_not_timed_beyond_the_budget() -> None:
    slow = Sleeping(0.5, 0.05)
    timed, _ = bench(lambda _: slow, Budget(seconds=1.0))
    assert choose(Asked(), 2, timed).setting == ONE_RUN
    assert slow.runs < 5


def test_settings_that_differ_in_runs_alone_share_a_session() -> None:
    timed, opened = bench(lambda _: Sleeping(0.0, 0.0001))
    assert timed.duel(Setting(1, 2), Setting(2, 2)) is not None
    assert opened == []


def test_losers_are_let_go() -> None:
    timed, opened = bench(lambda _: Sleeping(0.0, 0.0001))
    timed.duel(ONE_RUN, TWO_RUNS)
    timed.keep(ONE_RUN)
    timed.opened(ONE_RUN)
    assert opened == [TWO_RUNS]
    timed.opened(TWO_RUNS)
    assert opened == [TWO_RUNS, TWO_RUNS]


def test_threads_that_burn_after_a_run_are_seen() -> None:
    def burn() -> None:
        until = time.monotonic() + 5.0
        while not quiet.is_set() and time.monotonic() < until:
            pass

    class Burning(Sleeping):
        def run(self, rows: Rows) -> Outputs:
            threading.Thread(target=burn).start()
            return super().run(rows)

    quiet = threading.Event()
    timed, _ = bench(lambda _: Burning(0.0, 0.0))
    burnt = timed.idle(ONE_RUN)
    quiet.set()
    still, _ = bench(lambda _: Sleeping(0.0, 0.0))
    rest = still.idle(ONE_RUN)
    assert burnt is not None
    assert rest is not None
    assert burnt > 3 * max(rest, 0.001)


def test_the_rate_counts_rows_of_all_threads() -> None:
    found = measuring.rate(lambda: time.sleep(0.02), rows=10, runners=2, seconds=0.2)
    # Two threads, at most 50 runs a second each; a busy machine makes it fewer.
    assert 100 < found <= 1000


def test_the_table_holds_the_first_shape_whatever_it_takes_and_others_while_there_is_time() -> None:
    slow = Sleeping(0.05, 0.0)
    shapes = [(1, 8), (2, 8), (4, 8), (8, 8)]
    found = measuring.table(slow.run, lambda length: ROW, shapes, seconds=0.01)
    assert [(one.rows, one.longest) for one in found] == [(1, 8)]
    assert found[0].seconds >= 0.05
    whole = measuring.table(Sleeping(0.0, 0.001).run, lambda length: ROW, shapes, seconds=30.0)
    assert [(one.rows, one.longest) for one in whole] == shapes
    assert whole[3].seconds > whole[0].seconds
