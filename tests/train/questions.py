"""A small set of labelled texts for the tests: a class is a topic, an item a wording of it."""

from __future__ import annotations

import csv
from pathlib import Path

TOPICS = {
    "lost_card": ("card", "lost", "misplaced", "missing"),
    "exchange": ("currency", "exchange", "convert", "euros"),
    "top_up": ("top", "account", "load", "balance"),
    "pin": ("pin", "code", "forgot", "reset"),
    "transfer": ("transfer", "send", "abroad", "pending"),
    "fee": ("fee", "charged", "cost", "extra"),
    "refund": ("refund", "return", "purchase", "merchant"),
    "age": ("age", "children", "minimum", "young"),
    "cash": ("cash", "machine", "withdraw", "atm"),
    "phone": ("phone", "number", "device", "app"),
}
FRAMES = (
    "What about my {0} and {1}?",
    "I have a question on the {1}, the {2} one",
    "{0} {3} please help",
    "Why is the {2} so, with a {0}?",
    "Tell me of {3} or {1} now!",
    "is there any {0} {2} today",
)


def rows() -> list[tuple[str, str]]:
    """Return (text, label) of every wording."""
    return [(frame.format(*words), topic) for topic, words in TOPICS.items() for frame in FRAMES]


def write_csv(path: Path, lines: list[tuple[str, ...]], header: tuple[str, ...] = ()) -> Path:
    """Write lines as a CSV, and return its path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines] if header else lines)
    return path


def write_vectors(path: Path, width: int = 8) -> Path:
    """Write word vectors as text in which the words of a topic lie close, and return its path."""
    lines = []
    for place, words in enumerate(TOPICS.values()):
        for index, word in enumerate(words):
            values = [0.1 * index] * width
            values[place % width] += 1.0 + place / 10
            lines.append(f"{word} {' '.join(map(str, values))}")
    path.write_text(f"{len(lines)} {width}\n" + "\n".join(lines) + "\n")
    return path
