"""Which metrics and labels a PromQL expression names; whether it is one at all, promtool says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}
_WORDS |= {"group_left", "group_right", "inf", "nan"}
_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass
class Named:
    """What an expression names."""

    metrics: dict[str, set[str]] = field(default_factory=dict)  # with the labels of their selectors
    labels: set[str] = field(default_factory=set)  # by which it sums and joins


def named(expression: str) -> Named:
    """Read an expression."""
    found = Named()
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    rest = re.sub(r"#.*", "", rest)
    rest = re.sub(r"\[[^\]]*\]|\boffset\s+\w+|\$\w+", " ", rest)
    for labels in _LISTS.findall(rest):
        found.labels |= set(_NAME.findall(labels))
    rest = _LISTS.sub(" ", rest)
    for match in re.finditer(rf"({_NAME.pattern})\s*([({{]?)", rest):
        name, what = match.groups()
        if (
            name.lower() in _WORDS
            or what == "("
            or rest[: match.start()].count("{") != rest[: match.start()].count("}")
        ):
            continue
        if match.start() and rest[match.start() - 1].isdigit():
            continue  # 1e6
        labels = set()
        if what == "{":
            selector = rest[match.end() : rest.index("}", match.end())]
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        found.metrics.setdefault(name, set()).update(labels)
    return found
