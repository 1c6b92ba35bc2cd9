"""What a user says of a model made elsewhere, and what was taken where nothing was said.

In: flags, each None where not given. Out: for every question that the files leave open one answer,
with the reason for it, so that a guess is seen before it is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from twinserve.distance import Metric

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Flags of `twinserve import`; None leaves the answer to the files, or to a guess."""

    metric: Metric | None = None
    pooling: tuple[str, ...] | None = None
    normalize: bool | None = None
    truncations: tuple[int, ...] | None = None
    dimension: int | None = None  # keep so many leading coordinates

    # Texts.
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)  # added to those of the files
    default_prompt: str | None = None
    tokenizer: Path | None = None
    pad_id: int | None = None

    # Pictures.
    size: tuple[int, int] | None = None  # height, width
    color_order: str | None = None
    resize: str | None = None
    resample: str | None = None
    scale: float | None = None  # multiplies pixels of 0..255, before mean and std
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    # A plain ONNX file.
    modality: str | None = None
    output: str | None = None
    open_batch: bool = False


@dataclass(frozen=True)
class Answer:
    """One question, and what was taken for it."""

    question: str
    taken: str
    because: str
    flag: str
    guessed: bool  # neither a flag nor a file says so


class Answers:
    """Collects what was taken, for the user to read."""

    def __init__(self) -> None:
        self.given: list[Answer] = []

    def read(self, question: str, flag: T | None, stated: T, where: str, name: str) -> T:
        """Take the flag if it was given, else what a file states."""
        return self._take(question, flag, stated, f"{where} says so", name, guessed=False)

    def guess(self, question: str, flag: T | None, guess: T, because: str, name: str) -> T:
        """Take the flag if it was given, else a guess."""
        return self._take(question, flag, guess, because, name, guessed=True)

    def drop(self, question: str) -> None:
        """Forget a question that turned out not to matter."""
        self.given = [answer for answer in self.given if answer.question != question]

    def _take(
        self, question: str, flag: T | None, other: T, because: str, name: str, *, guessed: bool
    ) -> T:
        taken = other if flag is None else flag
        if flag is not None:
            because, guessed = "you said so", False
        self.given.append(Answer(question, _shown(taken), because, name, guessed))
        return taken


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(_shown(entry) for entry in value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
