"""Runs a document's fenced blocks as a reader would: in their order, in one folder.

In: Markdown whose author says of every block, by a comment on the line above it, how it is held:

    <!-- test: quick -->            it is run: bash, or python; the words are below
    <!-- file: my_net.py -->        it is written as that file, for the blocks behind it
    <!-- output -->                 it is what the block before it says
    <!-- run by tests/x.py -->      that test reads it and runs it (x.py: WHICH, where it has many)
    <!-- not run: REASON -->        nobody does, for one of the reasons of `NOT_RUN`

A fence of ```text shows something that is no code, and needs none of them. The words of a test:

    quick    run it with the tests
    long     run it only where a whole page is run (make test-long) or a tutorial (make tutorials):
             it takes a minute, or data that the repository does not hold
    short    its trainings take a few steps instead of what it asks for
    serve    a command that serves until the document ends; free ports stand in for those it names
    server   runs against the server of the demo's twin, which the test starts
    curl, parquet, openai   leave it out where that program, pyarrow or openai is missing

What a reader has already, such as photographs of his own, is made by a comment that nobody sees:

    <!-- unseen: quick, bash
    mkdir photos
    -->

A `<!-- needs: orl_faces.zip -->` anywhere names what has to lie in the folder before.

An `<!-- output -->` above the next block makes that what the marked one must say, on standard
output and error together. There, blanks between words count once, `…` stands for anything within a
line and alone on a line for any lines, a number with a decimal point for one within a fiftieth of
it, and a time such as 2026-01-31 12:00:00+00:00 for any time.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_BLOCK = re.compile(
    r"^<!-- *(?:test: *(?P<words>[a-z, ]+?)|file: *(?P<file>\S+)) *-->"
    r"\n+```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$"
    r"(?:\n+<!-- output -->\n+```\w*\n(?P<output>.*?)^```$)?"
    r"|^<!-- *unseen: *(?P<unseen>[a-z, ]+)\n(?P<code>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>```+|~~~+) *(?P<language>[\w+-]*)")
_COMMENT = re.compile(r"<!-- *(?P<text>.*?) *-->")
_NEEDS = re.compile(r"^<!-- *needs: *(?P<name>\S+) *-->$", re.MULTILINE)
KNOWN_WORDS = {"quick", "long", "short", "serve", "server", "curl", "parquet", "openai"}
PACKAGES = {"parquet": "pyarrow", "openai": "openai"}
STARTERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": ["python", "-c"]}
QUICK_SECONDS, LONG_SECONDS = 120.0, 3600.0
SHORT = " --set max_steps=4 evaluate_every=4 one_shot_trials=50"  # of a training
# Why a block may be left to its reader. Behind the reason, a semicolon and what is particular.
NOT_RUN = {
    "installs packages",
    "needs a Docker engine",
    "needs a GPU",
    "needs a cluster",
    "needs data that is not in the repository",
    "needs another language's tools",
    "measures for minutes to hours",
    "runs the tests or tutorials themselves",
    "overwrites files of the repository",
    "a fragment of a file",
}
GRPC, HTTP = "127.0.0.1:50051", "127.0.0.1:9090"  # where a server is unless told otherwise

_NUMBER = r"\d+\.\d+(?:e[+-]?\d+)?"
_TIME = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00|Z)"
_VARYING = re.compile(rf"(?P<time>{_TIME})|(?P<number>{_NUMBER})|(?P<any>…)")


class BlockFailed(AssertionError):
    """A block that fails, or says something else than its document; the message shows it."""


class BlockDiffers(BlockFailed):
    """A block that ran to its end, and said something else."""


@dataclass(frozen=True)
class Block:
    """One marked block: what runs it, what it needs, its text, and what it must say, if told."""

    language: str
    words: frozenset[str]
    text: str
    output: str | None = None
    # Where the output stands in the document: offsets of its first character, and behind its last.
    output_span: tuple[int, int] | None = field(default=None, compare=False)
    file: str | None = None  # written as this, and not run
    unseen: bool = False  # by whoever reads the page


@dataclass(frozen=True)
class Fence:
    """A fenced block, marked or not: how its page says that it is held."""

    language: str
    text: str
    line: int  # of the document, from 1
    mark: str  # "quick", "long", "file", "output", "run by", "not run", "shown"; "" = nothing said
    told: str = ""  # the file, the test or the reason that the mark names


def fences(markdown: str) -> list[Fence]:
    """Find all fenced blocks of a page, those inside lists included."""
    found: list[Fence] = []
    above, opened, text, began = "", None, "", 0
    for number, line in enumerate(markdown.splitlines(keepends=True), 1):
        fence = _FENCE.match(line)
        if opened is not None:
            if line.strip() == opened["ticks"]:
                mark, told = _mark(above, opened["language"])
                found.append(Fence(opened["language"], text, began, mark, told))
                above, opened = "", None
            else:
                text += line
        elif fence is not None:
            opened, text, began = fence, "", number
        elif line.strip():
            above = line.strip()
    return found


def _mark(above: str, language: str) -> tuple[str, str]:
    """Return what the line above a fence says of it."""
    comment = _COMMENT.fullmatch(above)
    said = comment["text"] if comment else ""
    kind, _, rest = said.partition(": ")
    if kind == "test":
        return ("long" if "long" in re.split("[, ]+", rest) else "quick"), ""
    if kind in ("file", "not run"):
        return kind, rest
    if said.startswith("run by "):
        return "run by", said.removeprefix("run by ").partition(":")[0]
    if said == "output":
        return "output", ""
    return ("shown" if language == "text" else ""), ""


def needs(markdown: str) -> list[str]:
    """Return what a document wants to find in its folder."""
    return [one["name"] for one in _NEEDS.finditer(markdown)]


def blocks(markdown: str) -> list[Block]:
    """Find the marked blocks.

    Raises:
        ValueError: a mark has no block, a word that nobody knows, or a language that cannot be run.
    """
    found = [_block(one) for one in _BLOCK.finditer(markdown)]
    if len(re.findall("<!-- *(?:test|file|unseen):", markdown)) != len(found):
        raise ValueError("a mark stands above no fenced block with a language")
    if markdown.count("<!-- output") != sum(block.output is not None for block in found):
        raise ValueError("an output mark stands behind no marked block, or above no block")
    for block in found:
        if block.file is not None:
            continue
        if not block.words <= KNOWN_WORDS:
            raise ValueError(f"unknown words {sorted(block.words - KNOWN_WORDS)} in a test mark")
        if block.language not in STARTERS:
            raise ValueError(f"no way to run a block of {block.language}")
    return found


def _block(one: re.Match[str]) -> Block:
    if one["unseen"] is not None:
        *words, language = re.split(r"[, ]+", one["unseen"].strip())
        return Block(language, frozenset(words), one["code"], unseen=True)
    return Block(
        one["language"],
        frozenset(re.split(r"[, ]+", one["words"] or "quick")),
        one["text"],
        one["output"],
        None if one["output"] is None else one.span("output"),
        one["file"],
    )


def can_run(block: Block) -> bool:
    """Say whether all that the block needs is here."""
    return ("curl" not in block.words or shutil.which("curl") is not None) and all(
        importlib.util.find_spec(PACKAGES[word]) for word in block.words & PACKAGES.keys()
    )


def differences(shown: str, said: str) -> str:
    """Return "" where what was said is as a document shows it, else how the two differ."""
    wanted, got = _tidy(shown), _tidy(said)
    lines = [r"(?:[^\n]*\n)*?" if line == "…" else _pattern(line) + r"\n" for line in wanted]
    found = re.fullmatch("".join(lines), "".join(f"{line}\n" for line in got))
    if found is not None:
        numbers = [float(one) for one in re.findall(_NUMBER, _without_times(wanted))]
        pairs = zip(numbers, map(float, found.groups()), strict=True)
        if all(math.isclose(a, b, rel_tol=0.02, abs_tol=0.002) for a, b in pairs):
            return ""
    return "\n".join(difflib.unified_diff(wanted, got, "shown", "said", lineterm=""))


def _tidy(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def _without_times(lines: list[str]) -> str:
    return re.sub(_TIME, "", "\n".join(lines))


def _pattern(line: str) -> str:
    """Return an expression for a line, with a group for each number with a decimal point."""
    parts, end = [], 0
    for one in _VARYING.finditer(line):
        parts.append(re.escape(line[end : one.start()]))
        parts.append(
            {"time": _TIME, "number": f"({_NUMBER})", "any": r"[^\n]*"}[one.lastgroup or ""]
        )
        end = one.end()
    return "".join(parts) + re.escape(line[end:])


def _replaced(text: str, addresses: Mapping[str, str]) -> str:
    return re.sub(r"\b127\.0\.0\.1:\d+\b", lambda one: addresses.get(one[0], one[0]), text)


def shortened(script: str) -> str:
    """Return a script whose trainings take a few steps; one that is resumed stays as it is."""
    return re.sub(
        r"twinserve(?:\.cli)? train\b(?:[^\n\\#;|&]|\\\n)*",
        lambda one: one[0] if "--resume" in one[0] else one[0].rstrip() + SHORT + " ",
        script,
    )


class Reading:
    """Runs blocks in a folder, as its reader; the servers that they start end with it.

    Where a block names 127.0.0.1 or localhost with the port of a server of the document, it reaches
    the one that runs, and what it says of that one's address is put back before it is compared.

    Args:
        document: its name, for messages.
        folder: where its blocks run.
        programs: folder of the `python` and `twinserve` that they call; by default of this Python.
        before: folder of programs that go before those, such as a warm `twinserve`.
        flags: of every server that is started, behind those of its command.
    """

    def __init__(
        self,
        document: str,
        folder: Path,
        programs: Path | None = None,
        before: Path | None = None,
        flags: str = "",
    ) -> None:
        self.document = document
        self.folder = folder
        self.flags = flags
        self._addresses: dict[str, str] = {}  # as the document has them -> as they are
        self._servers: list[subprocess.Popen[str]] = []
        here = programs or Path(sys.executable).parent
        path = [*([] if before is None else [str(before)]), str(here), os.environ["PATH"]]
        self._environment = {**os.environ, "PATH": os.pathsep.join(path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            try:
                server.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()

    def run(self, block: Block) -> None:
        """Run one block to its end, or until it serves.

        Raises:
            BlockFailed: it fails, with all that it said.
            BlockDiffers: it says something else than its document.
        """
        said = self.said(block)
        if block.output is not None and (how := differences(block.output, said)):
            raise BlockDiffers(
                f"this block of {self.document} says something else:\n{block.text}\n{how}"
            )

    def said(self, block: Block) -> str:
        """Run one block to its end, or until it serves; return what it said, not compared.

        Raises:
            BlockFailed: it fails.
        """
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            return ""
        said = self.serve(block.text) if "serve" in block.words else self._run(block)
        return _replaced(said, {actual: shown for shown, actual in self._addresses.items()})

    def serve(self, command: str) -> str:
        """Start a server, on free ports for those of its command; returns what it says first."""
        ports = [re.search(rf"--{kind}-port[ =](\d+)", command) for kind in ("grpc", "http")]
        documented = [
            f"127.0.0.1:{port[1]}" if port else default
            for port, default in zip(ports, (GRPC, HTTP), strict=True)
        ]
        server = subprocess.Popen(
            [*STARTERS["bash"], f"exec {command.strip()} {self.flags} --grpc-port 0 --http-port 0"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._servers.append(server)
        assert server.stdout is not None
        line = next((line for line in server.stdout if "SERVING" in line), "")
        addresses = re.search(r"grpc=(\S+) http=(\S+)", line)
        if addresses is None:
            raise BlockFailed(
                f"this server of {self.document} ended before it was SERVING:\n{command}"
            )
        self._addresses.update(zip(documented, addresses.groups(), strict=True))
        self._environment["TWINSERVE_TARGET"] = self._addresses.get(GRPC, GRPC)
        return line

    def _run(self, block: Block) -> str:
        text = _replaced(block.text.replace("localhost:", "127.0.0.1:"), self._addresses)
        if "short" in block.words:
            text = shortened(text)
        limit = LONG_SECONDS if "long" in block.words else QUICK_SECONDS
        try:
            done = subprocess.run(
                [*STARTERS[block.language], text],
                cwd=self.folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            so_far = (error.stdout or b"").decode(errors="replace")
            raise BlockFailed(
                f"this block of {self.document} runs for more than {limit:.0f} s:\n{block.text}\n"
                f"{so_far}"
            ) from error
        if done.returncode != 0:
            raise BlockFailed(f"this block of {self.document} fails:\n{block.text}\n{done.stdout}")
        return done.stdout
