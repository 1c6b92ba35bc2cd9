"""Every page is held to what it shows: its blocks run, or say who runs them, or why nobody does.

`documents` tells how an author marks blocks. All blocks of a page share one folder, in which the
repository's files lie; where a page needs the demo's twin, a small one stands in for it.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import warm
from tests.house.commands import commands
from tests.house.documents import NOT_RUN, Block, Fence, Reading, blocks, can_run, fences, needs
from tests.house.stand_ins import MAKERS
from twinserve.cli.__main__ import VERBS, parser_of
from twinserve.train.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (
        ROOT / "README.md",
        ROOT / "data" / "README.md",
        ROOT / "examples" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
)
QUICK_START = "--runners 1 --threads 1"  # no server of these pages measures what would be best
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]  # make tutorials


def pages_with(word: str) -> list[str]:
    """Return the pages, without the tutorials, that have a block of this word to run."""
    return [
        page
        for page in PAGES
        if page not in TUTORIALS
        and any(word in one.words and not one.unseen and not one.file for one in found(page))
    ]


def found(page: str) -> list[Block]:
    return blocks((ROOT / page).read_text(encoding="utf-8"))


def needed(page: str) -> list[str]:
    return needs((ROOT / page).read_text(encoding="utf-8"))


def clone_of(root: Path, folder: Path) -> Path:
    """Make a folder in which the repository's files seem to lie, `data` one that can be filled."""
    clone = folder / "clone"
    (clone / "data").mkdir(parents=True)
    for entry in root.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "dist", "build", "data"):
            (clone / entry.name).symlink_to(entry)
    for entry in (root / "data").iterdir():
        (clone / "data" / entry.name).symlink_to(entry)
    return clone


@pytest.fixture(scope="module")
def warm_commands() -> Iterator[Path]:
    """Give a folder whose `twinserve` has its imports behind it."""
    with warm.commands() as folder:
        yield folder


def read(page: str, wanted: list[Block], folder: Path, request: pytest.FixtureRequest) -> None:
    """Run blocks of a page in their order, in a folder made for them."""
    before = request.getfixturevalue("warm_commands")
    clone = clone_of(ROOT, folder)
    with_server = any("server" in block.words for block in wanted)
    if with_server or any("runs/demo" in block.text for block in wanted):
        twin = clone / "runs" / "demo" / "twin.onnx"
        twin.parent.mkdir(parents=True)
        twin.write_bytes(Path(request.getfixturevalue("twin_file")).read_bytes())
    stand_ins = [need for need in needed(page) if need in MAKERS]
    if stand_ins:
        make = [sys.executable, "-m", "tests.house.stand_ins", *stand_ins]
        subprocess.run(make, cwd=clone, check=True)
    with Reading(page, clone, before=before, flags=QUICK_START) as reading:
        if with_server:
            reading.serve("twinserve serve --model runs/demo/twin.onnx --data-dir runs/demo/data")
        for block in wanted:
            if can_run(block):
                reading.run(block)


@pytest.mark.parametrize("page", pages_with("quick"))
def test_the_quick_blocks_of_a_page_run_and_say_what_it_shows(
    page: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    read(page, [one for one in found(page) if "long" not in one.words], tmp_path, request)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", pages_with("long"))
def test_all_blocks_of_a_page_run_and_say_what_it_shows(
    page: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    missing = [need for need in needed(page) if need not in MAKERS and not (ROOT / need).exists()]
    if missing:
        pytest.skip(f"{page} needs {missing}")
    read(page, found(page), tmp_path, request)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run_or_says_why_not(page: str) -> None:
    for fence in fences((ROOT / page).read_text(encoding="utf-8")):
        where = f"{page}, line {fence.line}"
        if fence.mark == "run by":
            test = ROOT / fence.told
            assert test.is_file(), f"{where}: there is no {fence.told}"
            assert reads(test.read_text(encoding="utf-8"), page, fence), (
                f"{where}: {fence.told} neither reads this page nor holds the block's lines"
            )
        elif fence.mark == "not run":
            reason = fence.told.partition(";")[0]
            assert reason in NOT_RUN, f"{where}: {reason!r} is none of {sorted(NOT_RUN)}"
        else:
            assert fence.mark, (
                f"{where}: nothing says how this block of {fence.language or 'no language'} is "
                "held; tests/house/documents.py tells the marks"
            )


def reads(test: str, page: str, fence: Fence) -> bool:
    """Say whether a test names the page, by its path or its file, or holds every line itself."""
    path = Path(page)
    by_parts = f'"{path.parent.name}" / "{path.name}"'
    lines = [line.strip() for line in fence.text.splitlines() if line.strip()]
    return page in test or by_parts in test or all(line in test for line in lines)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_names_verbs_flags_and_settings_that_there_are(page: str) -> None:
    """Also where running it would take minutes, a network or a machine that is not here."""
    for fence in fences((ROOT / page).read_text(encoding="utf-8")):
        if fence.language not in ("bash", "sh"):
            continue
        for verb, *arguments in commands(fence.text):
            if verb in ("--help", "--version", "VERB"):
                continue
            assert verb in VERBS, f"{page}, line {fence.line}"
            if "--help" in arguments:
                continue
            parsed = parser_of(verb).parse_args(arguments)
            if getattr(parsed, "set", None) and getattr(parsed, "config", None) is None:
                load_config(None, parsed.set)
        for name in re.findall(r"python -m (benchmarks[\w.]*)", fence.text):
            assert importlib.util.find_spec(name), f"{page}, line {fence.line}: no {name}"
        for name in re.findall(r"python ((?:benchmarks|tools|examples)/[\w/]+\.py)", fence.text):
            assert (ROOT / name).is_file(), f"{page}, line {fence.line}: no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_page_and_section_that_a_page_links_to_is_there(page: str) -> None:
    here = ROOT / page
    text = re.sub(r"^```.*?^```$", "", here.read_text(encoding="utf-8"), flags=re.M | re.S)
    for path, section in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text):
        linked = (here.parent / path) if path else here
        if linked.parent.name == "reference":
            continue  # mostly made when the site is built, which looks at these links itself
        assert linked.exists(), f"{page} links to {path}"
        if section:
            assert section in sections(linked.read_text(encoding="utf-8")), f"{path}#{section}"


def sections(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    plain = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", plain, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_names_make_commands_and_extras_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra
        for page in PAGES
        for one in re.findall(r"twinserve\[([a-z,-]+)\]", (ROOT / page).read_text())
        for extra in one.split(",")
    }
    assert extras <= set(project["optional-dependencies"])


def test_the_walkthrough_shows_what_every_command_says() -> None:
    page = "docs/gallery-walkthrough.md"
    assert sum(block.output is not None for block in found(page)) >= 20
    assert {one.mark for one in fences((ROOT / page).read_text())} == {"quick", "output"}


def main() -> None:
    """Print how many blocks are held in which way."""
    totals: Counter[str] = Counter()
    for page in PAGES:
        for fence in fences((ROOT / page).read_text(encoding="utf-8")):
            reason = f": {fence.told.partition(';')[0]}" if fence.mark == "not run" else ""
            totals[f"{fence.mark or 'nothing said'}{reason}"] += 1
    for mark, count in sorted(totals.items()):
        print(f"{count:5}  {mark}")


if __name__ == "__main__":
    main()
