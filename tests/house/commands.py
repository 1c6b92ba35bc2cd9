"""Finds the `twinserve` commands of a shell script, without running it."""

from __future__ import annotations

import re
import shlex

# Where one command ends and the next begins.
_ENDS = {";", "|", "||", "&&", "&", "(", ")", ">", ">>", "<", "do", "done", "then", "fi"}


def commands(script: str) -> list[list[str]]:
    """Return the words of every `twinserve` command of a script; a variable stands as 1."""
    plain = re.sub(r"\\\n", " ", script)
    plain = re.sub(r"<<'(\w+)'.*?^\1$", "", plain, flags=re.MULTILINE | re.DOTALL)
    plain = re.sub(r"\$\{?\w+\}?", "1", plain)
    plain = re.sub(r"\s[12]>", " >", plain)
    found: list[list[str]] = []
    for line in plain.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        try:
            words = list(lexer)
        except ValueError:  # a quote that goes on over lines, as of JSON; none of ours begins in it
            continue
        current: list[str] | None = None
        begins = True  # a command
        for word in words:
            if word in _ENDS:
                current = None
            elif current is not None:
                current.append(word)
            elif begins and word == "twinserve":
                current = []
                found.append(current)
            begins = word in _ENDS
    return found
