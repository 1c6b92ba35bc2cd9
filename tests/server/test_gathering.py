"""Asks that wait while all runners are busy are run together, each with its own end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from twinserve.errors import InternalFault, InvalidInput
from twinserve.server.afterwards import Afterwards
from twinserve.server.completion import Completion
from twinserve.server.services.gathering import MOST_HERE, PATIENCE, Gathering


class Runs:
    """Answers asks with ten times themselves; holds its first run until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()
        self.began = threading.Event()

    def __call__(self, asks: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(asks))
        self.began.set()
        assert self.go.wait(10)
        return [InvalidInput("odd") if ask == 13 else 10 * ask for ask in asks]


async def answer(waits_for: Completion[int]) -> int:
    return await waits_for


async def begun(runs: Runs) -> None:
    assert await asyncio.to_thread(runs.began.wait, 10)


def test_what_comes_while_a_run_is_on_goes_together_by_key_and_weight() -> None:
    async def scenario() -> None:
        runs = Runs()
        with ThreadPoolExecutor(2) as threads:
            gathering: Gathering[int, int] = Gathering(threads, runners=1, most=3)
            first = asyncio.create_task(answer(gathering.ask("a", 1, 1, runs)))
            await begun(runs)
            keys = "aababa"
            rest = [
                asyncio.create_task(answer(gathering.ask(key, n, 1, runs)))
                for n, key in enumerate(keys, start=2)
            ]
            await asyncio.sleep(0)
            runs.go.set()
            assert await first == 10
            assert await asyncio.gather(*rest) == [20, 30, 40, 50, 60, 70]
        assert runs.groups == [[1], [2, 3, 5], [4, 6], [7]]

    asyncio.run(scenario())


def test_one_asks_error_is_its_own_and_one_that_gave_up_is_not_run() -> None:
    async def scenario() -> None:
        runs = Runs()
        with ThreadPoolExecutor(2) as threads:
            gathering: Gathering[int, int] = Gathering(threads, runners=1, most=9)
            first = asyncio.create_task(answer(gathering.ask("a", 1, 1, runs)))
            await begun(runs)
            rest = [
                asyncio.create_task(answer(gathering.ask("a", n, 1, runs))) for n in (12, 13, 14)
            ]
            await asyncio.sleep(0)
            rest[0].cancel()
            await asyncio.sleep(0)
            runs.go.set()
            await first
            with pytest.raises(InvalidInput, match="odd"):
                await rest[1]
            assert await rest[2] == 140
        assert runs.groups == [[1], [13, 14]]

    asyncio.run(scenario())


def test_a_key_is_asked_for_again_after_a_runner_came_to_it_past_one_that_gave_up() -> None:
    async def scenario() -> None:
        runs = Runs()
        with ThreadPoolExecutor(2) as threads:
            gathering: Gathering[int, int] = Gathering(threads, runners=1, most=9)
            first = asyncio.create_task(answer(gathering.ask("a", 1, 1, runs)))
            await begun(runs)
            gone = asyncio.create_task(answer(gathering.ask("b", 2, 1, runs)))
            left = asyncio.create_task(answer(gathering.ask("c", 3, 1, runs)))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            runs.go.set()
            assert (await first, await left) == (10, 30)
            again = asyncio.create_task(answer(gathering.ask("c", 4, 1, runs)))
            assert await asyncio.wait_for(again, 10) == 40

    asyncio.run(scenario())


def test_an_error_of_a_run_ends_each_of_its_asks_and_the_next_run_goes_on() -> None:
    def fails(asks: Sequence[int]) -> list[int | Exception]:
        raise InvalidInput(f"{len(asks)} at once")

    async def scenario() -> None:
        runs = Runs()
        with ThreadPoolExecutor(2) as threads:
            gathering: Gathering[int, int] = Gathering(threads, runners=1, most=9)
            first = asyncio.create_task(answer(gathering.ask("a", 1, 1, runs)))
            await begun(runs)
            rest = [asyncio.create_task(answer(gathering.ask("b", n, 1, fails))) for n in (2, 3)]
            await asyncio.sleep(0)
            runs.go.set()
            await first
            found = await asyncio.gather(*rest, return_exceptions=True)
            assert [str(error) for error in found] == ["2 at once", "2 at once"]
            assert found[0] is not found[1]
            runs.go.set()
            assert await gathering.ask("a", 5, 1, runs) == 50

    asyncio.run(scenario())


def test_a_fault_of_ours_in_a_run_of_several_is_in_the_log_that_its_calls_are_sent_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(asks: Sequence[int]) -> list[int | Exception]:
        raise ZeroDivisionError("a bug")

    async def scenario() -> None:
        runs = Runs()
        with ThreadPoolExecutor(2) as threads:
            gathering: Gathering[int, int] = Gathering(threads, runners=1, most=9)
            first = asyncio.create_task(answer(gathering.ask("a", 1, 1, runs)))
            await begun(runs)
            rest = [asyncio.create_task(answer(gathering.ask("b", n, 1, breaks))) for n in (2, 3)]
            await asyncio.sleep(0)
            runs.go.set()
            await first
            found = await asyncio.gather(*rest, return_exceptions=True)
            assert all(isinstance(error, InternalFault) for error in found)

    asyncio.run(scenario())
    assert "ZeroDivisionError: a bug" in caplog.text


def test_what_is_quick_is_run_by_the_reader_of_calls_once_nothing_is_left_to_read() -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    runs: list[tuple[list[int], int]] = []

    def run(asks: Sequence[int]) -> list[int | Exception]:
        runs.append((list(asks), threading.get_ident()))
        return [10 * ask for ask in asks]

    with ThreadPoolExecutor(1) as threads:
        gathering: Gathering[int, int] = Gathering(threads, 1, 9, afterwards)
        found = [gathering.ask("ab"[n % 2], n, 1, run, is_quick=True) for n in range(6)]
        found[4].abandon()
        afterwards.run(nothing_left=False)
        assert not runs, "others may come"
        afterwards.run(nothing_left=True)
        assert [asks for asks, _ in runs] == [[0, 2]]
        assert (found[0].done, found[1].done) == (True, False)
        for _ in range(MOST_HERE):
            gathering.ask("b", 7, 1, run, is_quick=True)
        afterwards.run(nothing_left=False)
        assert runs[1][0] == [1, 3, 5] + [7] * (MOST_HERE - 3), "enough for a run came"
        afterwards.run(nothing_left=True)
        assert not afterwards.waiting
        assert {thread for _, thread in runs} == {threading.get_ident()}
        assert found[5].result() == 50

        slow = gathering.ask("a", 8, 1, run)
        elsewhere: list[Completion[int]] = []
        ask = lambda: elsewhere.append(gathering.ask("a", 9, 1, run, is_quick=True))  # noqa: E731
        other = threading.Thread(target=ask)
        other.start()
        other.join()
    assert slow.result() == 80
    assert elsewhere[0].result() == 90
    assert threading.get_ident() not in [thread for _, thread in runs[3:]]


def test_a_run_of_the_reader_of_calls_waits_for_others_only_so_often() -> None:
    afterwards = Afterwards()
    afterwards.belong_here()
    with ThreadPoolExecutor(1) as threads:
        gathering: Gathering[int, int] = Gathering(threads, 1, 9, afterwards)
        found = gathering.ask("a", 1, 1, list, is_quick=True)
        for _ in range(PATIENCE):
            afterwards.run(nothing_left=False)
            assert not found.done
        afterwards.run(nothing_left=False)
    assert found.result() == 1
