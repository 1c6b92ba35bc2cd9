"""The line about what takes longer: on a terminal, from two seconds on, and gone at the end."""

from __future__ import annotations

import io
import time

import pytest

from twinserve.cli import progress as progresses
from twinserve.cli.progress import Progress, Working


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two seconds pass in a hundredth, and half a second in a thousandth."""
    monkeypatch.setattr(progresses, "_QUIET", 0.01)
    monkeypatch.setattr(progresses, "_INTERVAL", 0.001)
    monkeypatch.setenv("TERM", "xterm")


def wait_for(stream: Terminal, text: str) -> None:
    """Wait until the terminal shows a text."""
    until = time.monotonic() + 10
    while text not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.002)


def test_nothing_is_written_unless_to_a_terminal(soon: None) -> None:
    stream = io.StringIO()
    with Progress(10, "items", stream) as progress:
        progress.advance(5)
        time.sleep(0.03)
    assert stream.getvalue() == ""


def test_nothing_is_written_in_the_first_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(10, "items", stream) as progress:
        progress.advance(5)
        time.sleep(0.03)
    assert stream.getvalue() == ""


def test_the_line_moves_by_itself_and_leaves_no_trace(soon: None) -> None:
    stream = Terminal()
    with Progress(10, "items", stream) as progress:
        wait_for(stream, "working on 10 items … 0 s")
        progress.advance(5)
        wait_for(stream, "5/10 items")
        progress.advance(5)
        wait_for(stream, "10/10 items")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_total_that_is_learnt_late_is_shown(soon: None) -> None:
    stream = Terminal()
    with Progress(0, "items", stream) as progress:
        wait_for(stream, "working on the items")
        progress.reach(3, 8)
        wait_for(stream, "3/8 items")


def test_a_step_of_unknown_length_says_how_long_it_takes(soon: None) -> None:
    stream = Terminal()
    with Working("loading v4.onnx", stream) as working:
        wait_for(stream, "loading v4.onnx … 0 s")
        working._start -= 12.0
        wait_for(stream, "loading v4.onnx … 12 s")
        working.stage("warming up")
        wait_for(stream, "\r\x1b[Kwarming up …\n")
        wait_for(stream, "warming up … 0 s")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_what_is_said_is_kept_in_a_pipe_too() -> None:
    stream = io.StringIO()
    with Working("exporting", stream) as working:
        working.stage("writing the graph")
        working.say("done")
    assert stream.getvalue() == "writing the graph …\ndone\n"


def test_an_error_takes_the_line_away_first(soon: None) -> None:
    stream = Terminal()

    def load() -> None:
        with Working("loading", stream):
            wait_for(stream, "loading … 0 s")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        load()
    assert stream.getvalue().endswith("\r\x1b[K")
