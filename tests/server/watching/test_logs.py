"""Lines of the log: for people and for programs, and what they never hold."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from twinserve.errors import ConfigError
from twinserve.server.watching import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Leave logging as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logging.captureWarnings(False)
    logger.handlers[:], logger.level = handlers, level


def written(form: str, stream: io.StringIO, level: str = "info") -> str:
    logs.set_up(form, level, stream)
    log = logging.getLogger("twinserve.some")
    log.debug("too fine")
    log.info("%d items\nin two lines", 3, extra={"request_id": "a-1", "ms": 1.5})
    try:
        raise ValueError("what was wrong")
    except ValueError:
        log.exception("it failed")
    return stream.getvalue()


def test_json_is_one_object_a_line_with_the_facts_and_the_exception_as_fields() -> None:
    first, second = (json.loads(line) for line in written("json", io.StringIO()).splitlines())
    moment = datetime.fromisoformat(first.pop("time"))
    assert moment.tzinfo is not None
    assert abs(moment.timestamp() - datetime.now().timestamp()) < 60
    assert first == {
        "level": "info",
        "logger": "twinserve.some",
        "message": "3 items\nin two lines",
        "request_id": "a-1",
        "ms": 1.5,
    }
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("ValueError: what was wrong")


def test_people_read_the_facts_after_the_sentence_and_the_exception_below() -> None:
    lines = written("human", io.StringIO()).splitlines()
    assert lines[0].endswith("Z INFO twinserve.some: 3 items")
    assert lines[1] == "in two lines request_id=a-1 ms=1.5"
    assert lines[-1] == "ValueError: what was wrong"


def test_auto_is_for_people_on_a_terminal_and_for_programs_elsewhere() -> None:
    assert written("auto", Terminal()).splitlines()[0].endswith("Z INFO twinserve.some: 3 items")
    assert json.loads(written("auto", io.StringIO()).splitlines()[0])["logger"] == "twinserve.some"


def test_what_is_below_the_level_is_not_written() -> None:
    (line,) = written("json", io.StringIO(), "ERROR").splitlines()
    assert json.loads(line)["level"] == "error"


def test_a_level_that_there_is_none_of_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'loud'; give one of debug, info, warning"):
        logs.checked_level("loud")
