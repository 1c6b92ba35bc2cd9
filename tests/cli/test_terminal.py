"""Colours: on a terminal, as NO_COLOR and FORCE_COLOR say, and never in a pipe."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from tests.fake_server import FakeServer
from twinserve.cli.terminal import painted
from twinserve.v1 import embedding_service_pb2, shared_pb2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "stream", "coloured"),
    [
        ({}, Terminal(), True),
        ({}, io.StringIO(), False),
        ({"NO_COLOR": "1"}, Terminal(), False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, Terminal(), False),
        ({"FORCE_COLOR": "1"}, io.StringIO(), True),
        ({"TERM": "dumb"}, Terminal(), False),
    ],
)
def test_colours_show_where_they_should(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    stream: io.StringIO,
    coloured: bool,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert painted("no match", "red", stream) == (
        "\x1b[31mno match\x1b[0m" if coloured else "no match"
    )


def test_a_decision_and_an_error_are_coloured_when_asked(
    run: Callable[..., tuple[int, str, str]], fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    comparison = embedding_service_pb2.Comparison(
        score=shared_pb2.Score(distance=0.2),
        decision=shared_pb2.Decision(outcome=shared_pb2.OUTCOME_MATCH, threshold=0.3),
    )
    result = embedding_service_pb2.CompareResult(comparison=comparison)
    fake.on("Compare", embedding_service_pb2.CompareResponse(results=[result]))
    words = ("compare", "--text", "a", "b")
    assert run(*words)[1].startswith("MATCH\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(*words)[1].startswith("\x1b[32mMATCH\x1b[0m\n")
    assert "\x1b" not in run(*words, "--json")[1]
    assert run("compare", "a")[2].startswith("\x1b[31mtwinserve:\x1b[0m ")
