"""What the server logs and how: lines on standard error, for people or as JSON.

Whoever logs gives facts beside the sentence as `extra={"request_id": …}`; in JSON each is a field
of its own, for people they follow the sentence as key=value. Facts and sentences hold no
credentials and nothing of what is embedded: not at any level.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

from twinserve.errors import ConfigError

FORMATS = ("auto", "human", "json")
LEVELS = ("debug", "info", "warning", "error", "critical")

# What logging itself puts on a record; all else was given with `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(form: str, level: str, stream: TextIO | None = None) -> None:
    """Log all that the process has to say, warnings of Python's included.

    Args:
        form: one of FORMATS; auto is human on a terminal and json elsewhere.
        level: one of LEVELS, in capitals or not; what is below it is not logged.
        stream: standard error where it is None.

    Raises:
        ConfigError: no such level.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_human = form == "human" or (form == "auto" and stream.isatty())
    handler.setFormatter(HumanFormatter() if is_human else JsonFormatter())
    logging.basicConfig(level=checked_level(level).upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def checked_level(level: str) -> str:
    """Return a level in small letters.

    Raises:
        ConfigError: there is none of that name.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"the log level is {level!r:.40}; give one of {', '.join(LEVELS)}")
    return level.lower()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the facts, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update(_facts(record))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=str)


class HumanFormatter(logging.Formatter):
    """Time, level, logger and sentence, then the facts; an exception below, as Python prints it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        for name, value in _facts(record):
            line += f" {name}={value}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _time(record: logging.LogRecord) -> str:
    """Return when it happened as RFC 3339 says, in UTC with milliseconds."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _facts(record: logging.LogRecord) -> Iterable[tuple[str, object]]:
    return [(name, value) for name, value in vars(record).items() if name not in _OWN]
