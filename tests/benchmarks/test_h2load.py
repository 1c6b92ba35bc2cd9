"""What is read from h2load: its summary, its log, and a rate where replies come in bursts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving import h2load

PRINTED = """\
finished in 5.50s, 1228.08 req/s, 41.36KB/s
requests: 6140 total, 6172 started, 6140 done, 6140 succeeded, 0 failed, 0 errored, 0 timeout
status codes: {good} 2xx, 0 3xx, {bad} 4xx, 0 5xx
traffic: 3.37KB (3449) total, 1.90KB (1944) headers (space savings 69.14%), {text} ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      509us     12.37ms      3.18ms      2.83ms    88.00%
"""


def printed(good: int = 6140, bad: int = 0, data: int = 1_600_000) -> str:
    return PRINTED.format(good=good, bad=bad, data=data, text="1.53MB")


def test_the_summary_tells_replies_failures_and_bytes() -> None:
    assert h2load.parse(printed(bad=2)) == h2load.Summary(6140, 2, 1_600_000)


def test_output_without_a_summary_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no summary: 'could not connect'"):
        h2load.parse("could not connect")


def test_whole_replies_pass_and_refusals_without_a_body_do_not() -> None:
    h2load.check(h2load.parse(printed()), 256, "http://somewhere")
    with pytest.raises(RuntimeError, match="some were refused"):
        h2load.check(h2load.parse(printed(data=1_500_000)), 256, "http://somewhere")


@pytest.mark.parametrize(("good", "bad"), [(0, 0), (10, 1)])
def test_failures_and_silence_end_the_measurement(good: int, bad: int) -> None:
    with pytest.raises(RuntimeError, match=f"{good} replies, {bad} failures"):
        h2load.check(h2load.parse(printed(good, bad)), 1, "http://somewhere")


def test_the_log_gives_seconds_and_leaves_out_what_failed() -> None:
    started, taken = h2load.read_log("2000000\t200\t5927\n2500000\t-1\t10\n3000000\t200\t10\n")
    assert started.tolist() == [2.0, 3.0]
    assert taken.tolist() == pytest.approx([0.005927, 0.00001])


def test_an_empty_log_gives_nothing() -> None:
    started, taken = h2load.read_log("")
    assert len(started) == len(taken) == 0


def bursts(sizes: list[int], apart: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Replies in bursts, each spread over a millisecond."""
    return np.concatenate([i * apart + np.linspace(0, 0.001, size) for i, size in enumerate(sizes)])


@pytest.mark.parametrize("cut", [0, 1, 7, 31])
def test_the_rate_of_bursts_does_not_depend_on_where_the_window_cut_the_first(cut: int) -> None:
    # 32 replies every 0.25 s are 128 a second; counted over the window they would be up to 9 % off.
    times = bursts([32] * 12, 0.25)[cut:]
    assert h2load.steady_rate(times) == pytest.approx(128, rel=0.01)


def test_the_rate_of_an_even_stream_is_its_rate() -> None:
    assert h2load.steady_rate(np.arange(5000) / 1000 + 1.7e9) == pytest.approx(1000, rel=1e-3)


def test_a_single_burst_is_no_rate_however_fast_it_came() -> None:
    with pytest.raises(RuntimeError, match="4 replies in the window, all at once"):
        h2load.steady_rate(np.array([0.0, 0.01, 0.05, 0.06]), least=1)


def test_a_lone_last_reply_ends_the_rate() -> None:
    assert h2load.steady_rate(np.array([0.0, 3.0, 4.0, 5.0, 10.0])) == pytest.approx(0.4)


def test_too_few_replies_give_no_rate() -> None:
    with pytest.raises(RuntimeError, match="3 replies in the window"):
        h2load.steady_rate(np.array([1.0, 2.0, 3.0]))
