"""What the rows draw and sort, without any server."""

from __future__ import annotations

import io
import itertools
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import machine, wire
from benchmarks.serving.limit import Layout, layouts, others
from benchmarks.serving.report import Aim, Line, Report, put_into
from benchmarks.serving.rows import arrivals, lengths, overload, pictures, swaps
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2


def call(status: int, seconds: float) -> wire.Call:
    return wire.Call(b"", due=100.0, sent=100.0, ended=100.0 + seconds, status=status)


def test_every_call_of_an_overload_is_counted_once_by_what_became_of_it() -> None:
    calls = [
        *(call(wire.OK, 0.2) for _ in range(6)),
        call(wire.OK, 1.2),  # answered, too late to be of use
        call(wire.RESOURCE_EXHAUSTED, 0.001),
        call(wire.DEADLINE_EXCEEDED, 0.002),  # told at once that it cannot be met
        call(wire.DEADLINE_EXCEEDED, 1.0),  # waited for nothing
        call(wire.LOST, 1.0),  # as grpcio ends it at its deadline
        call(wire.CANCELLED, 0.0),
        call(wire.LOST, 0.9),  # nothing ends a call before its deadline without a status
        call(13, 0.01),
    ]
    found = overload.sort(calls, due=15, seconds=2)  # one found no connection
    assert found.goodput == 3
    assert sorted(found.refusals) == pytest.approx([0.001, 0.002])
    assert (found.expired, found.lost) == (3, 4)


def test_a_slow_refusal_is_a_refusal_and_tells_in_their_p99() -> None:
    slow = [
        call(wire.RESOURCE_EXHAUSTED, 0.7),
        call(wire.UNAVAILABLE, 1.3),
        call(wire.DEADLINE_EXCEEDED, 0.99),
    ]
    found = overload.sort([*slow, call(wire.OK, 0.1)], due=4, seconds=1)
    assert sorted(found.refusals) == pytest.approx([0.7, 0.99, 1.3])
    assert (found.expired, found.lost) == (0, 0)


def test_a_deadline_runs_from_when_a_call_is_sent_and_a_wait_from_when_it_was_due() -> None:
    told = wire.Call(b"", due=99.5, sent=100.0, ended=100.6, status=wire.DEADLINE_EXCEEDED)
    found = overload.sort([told], due=1, seconds=1)
    assert found.refusals == pytest.approx((1.1,))


def answer(version: str, values: list[float], sent: float, ended: float) -> wire.Call:
    result = pb.EmbedResult(embedding=shared_pb2.Embedding(values=values))
    reply = wire.prefixed(
        pb.EmbedResponse(model_version=version, results=[result]).SerializeToString()
    )
    return wire.Call(b"x", due=sent, sent=sent, ended=ended, status=wire.OK, reply=reply)


def test_an_answer_is_mixed_up_unless_it_is_of_a_version_that_lived_meanwhile_and_its_own() -> None:
    ones, twos = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    answers = swaps.Answers({b"x": 0}, {"a@1": ones, "a@2": twos})
    answers.spans = (swaps.Span("a@1", 0, 10), swaps.Span("a@2", 8))
    for call in (
        answer("a@1", [1, 0], 1, 2),
        answer("a@1", [1, 0], 9.5, 12),
        answer("a@2", [0, 1], 5, 8.5),
    ):
        answers.sort(call)
    assert answers.right == {"a@1": 2, "a@2": 1}
    for call in (
        answer("a@1", [1, 0], 10.5, 11),  # unloaded before it was asked for
        answer("a@2", [0, 1], 1, 2),  # not loaded yet
        answer("a@2", [1, 0], 9, 9.5),  # the other's vector
        answer("a@3", [1, 0], 9, 9.5),
        answer("a@1", [1, 0, 0], 1, 2),
    ):
        answers.sort(call)
    assert (answers.right.total(), answers.mixed) == (3, 5)
    answers.sort(wire.Call(b"x", due=1, status=wire.UNAVAILABLE))
    assert answers.failed == {wire.UNAVAILABLE: 1}


def test_memory_is_flat_when_the_end_holds_no_more_than_the_middle() -> None:
    assert overload.grown([100, 150, 200, 200, 200, 198]) == 0
    assert overload.grown([100, 100, 100, 100, 100, 110]) == pytest.approx(0.1)
    with pytest.raises(RuntimeError, match="read 2 times"):
        overload.grown([100, 100])


def test_poisson_arrivals_have_the_rate_and_the_spread_of_chance() -> None:
    instants = arrivals.times(50, 200)
    gaps = [later - earlier for earlier, later in itertools.pairwise(instants)]
    assert len(instants) == pytest.approx(10_000, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert instants[-1] < 200
    assert instants == arrivals.times(50, 200)


def test_texts_are_mostly_short_and_some_are_of_the_longest() -> None:
    drawn = lengths.drawn(400)
    assert min(drawn) >= lengths.SHORTEST
    assert max(drawn) == lengths.LONGEST
    assert drawn.count(lengths.LONGEST) >= 10
    assert statistics.median(drawn) < 32


def test_the_picture_has_the_size_and_weight_of_a_photograph() -> None:
    data = pictures.photograph()
    assert Image.open(io.BytesIO(data)).size == (500, 375)
    # Flat colour would take 4 KB, noise 200.
    assert 20_000 < len(data) < 120_000


def test_one_core_leaves_nothing_to_choose() -> None:
    assert layouts(1) == [Layout(1, 1, False)]


def test_a_server_is_also_tried_with_threads_that_do_not_spin() -> None:
    assert others(Layout(1, 2, True), 2) == [Layout(1, 2, False), Layout(2, 1, False)]
    assert others(Layout(2, 1, False), 2) == [Layout(1, 2, False)]


def test_a_process_is_counted_with_those_it_started() -> None:
    script = (
        "import subprocess, sys, time; sum(range(3_000_000));"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True);"
        " time.sleep(60)'], stdout=sys.stdout, start_new_session=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            first.stdout.readline()
            family = machine.members(first.pid)
            used = machine.usage(first.pid)
            assert len(family) == 2
            assert used.threads == 2
            assert used.resident > 4 << 20
            assert used.cpu > 0
        finally:
            for process in machine.members(first.pid):
                os.kill(process, 9)
    assert machine.members(first.pid) == []


def test_a_report_is_read_back_as_it_was_and_shows_each_aim(tmp_path: Path) -> None:
    report = Report("2 cores", {"turns": 3})
    report.lines.append(
        Line("Calls", "tiny", "32 in flight", "ours", {"of raw": "0.30"}, (Aim(">= 0.2", True),))
    )
    report.lines.append(Line("Calls", "tiny", "32 in flight", "bare", {"p99 ms": "4"}))
    report.notes.append("mosec: no environment")
    report.save(tmp_path / "kept.json")
    assert Report.read(tmp_path / "kept.json") == report
    shown = report.markdown()
    assert "| twin | load | who | of raw | p99 ms |" in shown
    assert "| tiny | 32 in flight | bare |  | 4 |" in shown
    assert "- Calls, tiny, 32 in flight: >= 0.2: met" in shown
    assert "- mosec: no environment" in shown


def test_what_was_measured_again_takes_the_place_of_what_was_known_of_the_same_twin() -> None:
    def line(table: str, twin: str, load: str, figure: str) -> Line:
        return Line(table, twin, load, "ours", {"of raw": figure})

    kept = line("Calls", "tiny", "24 in flight", "0.3"), line("Bulk", "minilm", "", "0.9")
    old = line("Calls", "minilm", "24 in flight", "0.8"), line("Calls", "minilm", "32", "0.8")
    again, new = line("Calls", "minilm", "24 in flight", "0.9"), line("Alone", "tiny", "1", "1.1")
    first = Report("2 cores", {"turns": 3}, [kept[0], *old, kept[1]], ["no GPU"])
    merged = first.with_lines_of(Report("2 cores", {"turns": 5}, [again, new]))
    assert merged == Report("2 cores", {"turns": 3}, [kept[0], again, kept[1], new], ["no GPU"])


def test_tables_replace_those_of_an_earlier_run_and_nothing_else_of_the_page() -> None:
    page = "# Head\n<!-- figures: begin -->\nold\n<!-- figures: end -->\ntail\n"
    once = put_into(page, "new")
    assert "old" not in once
    assert once.startswith("# Head\n")
    assert once.endswith("<!-- figures: end -->\ntail\n")
    assert put_into(once, "new") == once
    with pytest.raises(ValueError, match="no line <!-- figures: begin -->"):
        put_into("# Head", "new")


def test_tables_of_another_mark_stand_beside_the_first_on_one_page() -> None:
    marks = "<!-- {0}: begin -->\nold {0}\n<!-- {0}: end -->\n"
    page = marks.format("figures") + marks.format("gallery figures")
    put = put_into(page, "new", "gallery figures")
    assert "old figures" in put
    assert "old gallery figures" not in put
    assert put_into(put, "newer").count("new") == 2
