"""Which setting is chosen from timings, with a bench whose timings the tests make up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from twinserve.errors import ConfigError
from twinserve.server.runtime import planning
from twinserve.server.runtime.planning import Asked, Duel, Setting, Spinning, candidates, choose

ONE_RUN, TWO_RUNS = Setting(1, 2), Setting(2, 1)


@dataclass
class Machine:
    """Settings with their rows/s; a setting without is not timed, as when time has run out."""

    speeds: dict[Setting, float]
    latencies: dict[Setting, float] = field(default_factory=dict)
    idles: dict[Spinning, float] = field(default_factory=dict)
    lone: dict[Setting, float] = field(default_factory=dict)  # seconds of a row after a pause
    kept: list[tuple[Setting, ...]] = field(default_factory=list)

    def duel(self, first: Setting, second: Setting) -> Duel | None:
        if first not in self.speeds or second not in self.speeds:
            return None
        speeds = self.speeds[first], self.speeds[second]
        latency = self.latencies.get(first, 0.01), self.latencies.get(second, 0.01)
        return Duel(speeds[1] / speeds[0], speeds, latency)

    def alone(self, first: Setting, second: Setting) -> tuple[float, float] | None:
        if first not in self.lone or second not in self.lone:
            return None
        return self.lone[first], self.lone[second]

    def idle(self, setting: Setting) -> float | None:
        return self.idles.get(setting.spinning, 0.013)

    def keep(self, *settings: Setting) -> None:
        self.kept.append(settings)


def spinning(setting: Setting, how: Spinning) -> Setting:
    return replace(setting, spinning=how)


@pytest.mark.parametrize(
    ("processors", "settings"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (4, [(1, 4), (2, 3), (4, 1)]),
        (6, [(1, 6), (2, 5), (3, 4), (6, 1)]),
    ],
)
def test_every_candidate_keeps_all_processors_busy_and_no_more(
    processors: int, settings: list[tuple[int, int]]
) -> None:
    found = candidates(Asked(), processors)
    assert [(one.runners, one.threads) for one in found] == settings
    # R callers and the T - 1 helpers that they share.
    assert {one.runners + one.threads - 1 for one in found} == {processors}


@pytest.mark.parametrize(
    ("asked", "setting"),
    [
        (Asked(2, 0), Setting(2, 3)),
        (Asked(0, 2), Setting(3, 2)),
        (Asked(3, 5), Setting(3, 5)),
        (Asked(8, 0), Setting(8, 1)),
        (Asked(0, 9), Setting(1, 9)),
        (Asked(1, 2, Spinning.ON), Setting(1, 2, Spinning.ON)),
        (Asked(2, 1, Spinning.ON), Setting(2, 1, Spinning.OFF)),
    ],
)
def test_what_the_operator_fixed_is_what_runs(asked: Asked, setting: Setting) -> None:
    assert candidates(asked, 4) == (setting,)
    assert choose(asked, 4, Machine({})).setting == setting


def test_more_runs_at_a_time_are_chosen_where_they_carry_more_rows() -> None:
    plan = choose(Asked(), 2, Machine({ONE_RUN: 500, TWO_RUNS: 560}))
    assert plan.setting == TWO_RUNS
    assert "2 × 1 rather than 1 × 2: 1.12 times the rows" in plan.why


def test_a_gain_within_the_noise_leaves_the_setting_that_answers_a_single_row_soonest() -> None:
    plan = choose(Asked(), 2, Machine({ONE_RUN: 500, TWO_RUNS: 515}), twice=False)
    assert plan.setting == ONE_RUN
    assert not plan.trials[0].second_is_better


def test_as_many_rows_are_enough_for_more_runs_where_lone_runs_have_their_own_session() -> None:
    latencies = {ONE_RUN: 0.006, TWO_RUNS: 0.01}
    machine = Machine({ONE_RUN: 500, TWO_RUNS: 505}, latencies, lone=latencies)
    plan = choose(Asked(), 2, machine)
    assert (plan.setting, plan.lone) == (TWO_RUNS, ONE_RUN)
    machine = Machine({ONE_RUN: 500, TWO_RUNS: 470}, latencies, lone=latencies)
    fewer = choose(Asked(), 2, machine)
    assert (fewer.setting, fewer.lone) == (ONE_RUN, None)


def test_small_losses_do_not_add_up() -> None:
    speeds = {Setting(1, 4): 500.0, Setting(2, 3): 485.0, Setting(4, 1): 470.0}
    latencies = {Setting(1, 4): 0.003, Setting(2, 3): 0.004, Setting(4, 1): 0.01}
    assert choose(Asked(), 4, Machine(speeds, latencies)).setting == Setting(2, 3)


def test_of_settings_as_fast_the_one_with_the_shorter_wait_is_chosen() -> None:
    machine = Machine({ONE_RUN: 500, TWO_RUNS: 490}, {ONE_RUN: 0.010, TWO_RUNS: 0.006})
    assert choose(Asked(), 2, machine).setting == TWO_RUNS
    slower = Machine({ONE_RUN: 500, TWO_RUNS: 400}, {ONE_RUN: 0.010, TWO_RUNS: 0.006})
    assert choose(Asked(), 2, slower).setting == ONE_RUN


def test_of_many_candidates_the_best_is_found_whatever_its_place() -> None:
    speeds = {
        Setting(1, 8): 500.0,
        Setting(2, 7): 700.0,
        Setting(4, 5): 900.0,
        Setting(8, 1): 800.0,
    }
    machine = Machine(speeds)
    assert choose(Asked(), 8, machine).setting == Setting(4, 5)
    assert machine.kept[-1] == (Setting(4, 5),), "the losers stay in memory"


def test_without_time_to_measure_the_first_setting_is_kept_and_the_reason_told() -> None:
    plan = choose(Asked(), 2, Machine({}))
    assert plan.setting == ONE_RUN
    assert "no time" in plan.why


def test_spinning_that_burns_a_core_while_idle_is_refused_however_fast() -> None:
    speeds = {ONE_RUN: 500.0, TWO_RUNS: 300.0}
    speeds |= {spinning(ONE_RUN, how): 900.0 for how in (Spinning.SHORT, Spinning.ON)}
    plan = choose(Asked(), 2, Machine(speeds))
    assert plan.spinning is Spinning.OFF
    assert "burns 13.0 ms after a run" in plan.why


def test_a_short_spin_that_costs_nothing_idle_is_taken_where_it_carries_more_rows() -> None:
    idle = {Spinning.SHORT: 0.0002}
    speeds = {ONE_RUN: 500.0, TWO_RUNS: 300.0, spinning(ONE_RUN, Spinning.SHORT): 560.0}
    assert choose(Asked(), 2, Machine(speeds, idles=idle)).spinning is Spinning.SHORT
    speeds[spinning(ONE_RUN, Spinning.SHORT)] = 510.0
    assert choose(Asked(), 2, Machine(speeds, idles=idle)).spinning is Spinning.OFF


def test_spinning_is_not_tried_where_no_helpers_could_spin() -> None:
    speeds = {ONE_RUN: 500.0, TWO_RUNS: 900.0}
    assert len(choose(Asked(), 2, Machine(speeds)).trials) == 1


def test_the_only_way_needs_no_trial() -> None:
    plan = choose(Asked(), 1, Machine({}))
    assert plan.setting == Setting(1, 1)
    assert plan.trials == ()


def test_a_net_that_is_nearly_free_spins_not_however_much_it_would_carry() -> None:
    speeds = {ONE_RUN: 500.0, TWO_RUNS: 300.0, spinning(ONE_RUN, Spinning.SHORT): 900.0}
    idle = {Spinning.SHORT: 0.0002}
    quick = dict.fromkeys([ONE_RUN, TWO_RUNS], 0.0004)
    assert choose(Asked(), 2, Machine(speeds, quick, idle)).setting == ONE_RUN
    slower = dict.fromkeys([ONE_RUN, TWO_RUNS], 0.004)
    assert choose(Asked(), 2, Machine(speeds, slower, idle)).spinning is Spinning.SHORT


ALL, ALL_SPINNING, MANY = Setting(1, 4), Setting(1, 4, Spinning.RUN), Setting(4, 1)


@pytest.mark.parametrize(
    ("asleep", "spinning", "lone"),
    [
        (0.020, 0.015, ALL_SPINNING),
        (0.020, 0.038, ALL),
        (0.038, 0.038, None),
        (0.060, 0.060, None),
    ],
)
def test_a_lone_run_has_all_threads_where_these_answer_a_row_sooner(
    asleep: float, spinning: float, lone: Setting | None
) -> None:
    speeds = {ALL: 25.0, Setting(2, 3): 26.0, MANY: 40.0}
    machine = Machine(speeds, lone={MANY: 0.04, ALL: asleep, ALL_SPINNING: spinning})
    plan = choose(Asked(), 4, machine)
    assert (plan.setting, plan.lone) == (MANY, lone)
    assert set(machine.kept[-1]) == {MANY, lone} - {None}
    if lone:
        assert str(plan).startswith(f"4 × 1, {lone} for lone runs (")
        assert f"{lone} answers a lone row in " in plan.why
    assert choose(Asked(), 4, machine, twice=False).lone is None, "too large to be there twice"


def test_lone_runs_keep_to_what_the_operator_fixed() -> None:
    lone = {MANY: 0.04, ALL: 0.02, ALL_SPINNING: 0.01}
    machine = Machine({ALL: 25.0, MANY: 40.0}, lone=lone)
    assert choose(Asked(threads=1), 4, machine).lone is None
    assert choose(Asked(spinning=Spinning.OFF), 4, machine).lone == ALL
    assert choose(Asked(runners=4), 4, machine).lone == ALL_SPINNING


def test_lone_runs_share_the_session_that_has_all_threads_unless_spinning_helps() -> None:
    speeds = {ONE_RUN: 500.0, TWO_RUNS: 300.0}
    spins = spinning(ONE_RUN, Spinning.RUN)
    lone = {ONE_RUN: 0.010, spins: 0.0095}
    assert choose(Asked(), 2, Machine(speeds, lone=lone)).lone is None
    lone[spins] = 0.007
    assert choose(Asked(), 2, Machine(speeds, lone=lone)).lone == spins


def test_lone_runs_of_a_net_that_is_nearly_free_have_the_threads_that_carry_most() -> None:
    speeds = {Setting(1, 4): 250.0, Setting(2, 3): 260.0, Setting(4, 1): 400.0}
    speeds |= {Setting(1, 1): 100.0, Setting(1, 2): 170.0, Setting(1, 4): 171.0}
    machine = Machine(speeds, dict.fromkeys(speeds, 0.0004))
    plan = choose(Asked(), 4, machine)
    assert (plan.setting, plan.lone) == (Setting(4, 1), Setting(1, 2))
    assert set(machine.kept[-1]) == {Setting(4, 1), Setting(1, 2)}
    assert str(plan).startswith("4 × 1, 1 × 2 for lone runs (")
    assert choose(Asked(threads=1), 4, machine).lone is None, "asked for one thread"
    assert choose(Asked(), 4, machine, twice=False).lone is None, "too large to be there twice"


def test_spinning_is_read_from_its_flag() -> None:
    assert planning.spinning_asked("auto") is None
    assert planning.spinning_asked("short") is Spinning.SHORT
    with pytest.raises(ConfigError, match="--spinning fast is unknown"):
        planning.spinning_asked("fast")


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="--runners is -1"):
        Asked(runners=-1)
