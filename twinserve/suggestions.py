"""The nearest known name to one that was mistyped, as the end of an error's sentence."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most like a word, or None where none is like it."""
    import difflib  # only errors need it

    found = difflib.get_close_matches(word, list(known), 1, cutoff)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?", or nothing where no known name is like the word."""
    found = nearest(word, known)
    return f"; did you mean {found}?" if found else ""
