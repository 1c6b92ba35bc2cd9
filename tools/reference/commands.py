"""Writes the reference of the command line, from the parsers that read it."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator

from twinserve.cli.__main__ import VERBS, parser_of

INTRODUCTION = """\
# Commands

`twinserve VERB --help` says the same. Results go to standard output, everything else to standard
error; `--json` prints what programs read.
"""


def page() -> str:
    """Write the page: a section for each verb, and one below it for each of its actions."""
    parts = [INTRODUCTION]
    parts.append(
        "\n".join(f"- [`{verb}`](#twinserve-{verb}): {text}" for verb, text in VERBS.items())
    )
    for verb in VERBS:
        parts += _section(parser_of(verb), 2)
    return "\n\n".join(parts) + "\n"


def _section(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield f"{'#' * level} {parser.prog}"
    if parser.description:
        yield parser.description
    yield f"```text\n{parser.format_usage().removeprefix('usage: ').strip()}\n```"
    below: dict[str, argparse.ArgumentParser] = {}
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                below = dict(action.choices)
            elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                rows.append(f"| {_names(action)} | {_help(parser, action)} |")
        if rows:
            yield "\n".join([f"| {group.title} | |", "|---|---|", *rows])
    if parser.epilog:
        yield from _epilog(parser.epilog)
    for one in below.values():
        yield from _section(one, level + 1)


def _names(action: argparse.Action) -> str:
    metavar = action.metavar
    if metavar is None:
        choices = None if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
        metavar = choices or action.dest.upper()
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{name}{takes}`" for name in action.option_strings)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if not action.help:
        return ""
    text = parser._get_formatter()._expand_help(action)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _epilog(epilog: str) -> Iterator[str]:
    """Show what stands under a parser's options: paragraphs that a word with a colon heads."""
    for paragraph in epilog.strip("\n").split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if head.endswith(":") and rest:
            yield f"{head[0].upper()}{head[1:]}"
            yield f"```text\n{textwrap.dedent(rest).rstrip()}\n```"
        else:
            yield f"```text\n{paragraph.strip()}\n```"
