"""What MkDocs asks of us while it builds the site (`hooks` in mkdocs.yml).

Adds the pages that are made of code, so that they cannot fall behind it; points links that leave
docs/ at copies of what they name; takes out what tells tests how to run a page's blocks; and stops
the build where a page would fetch anything when it is opened.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import commands
import contract
import reasons
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
CALLS = """\
The services `EmbeddingService`, `GalleryService` and `ModelService`, made of
`protos/twinserve/v1`. The same port answers gRPC health, reflection and the
[Open Inference Protocol](inference.md). [Errors by reason](reasons.md) lists what may be answered
instead."""
INFERENCE = """\
What Triton's and KServe's clients call, made of `protos/twinserve/oip`;
[the Open Inference Protocol](../inference-protocol.md) says what the fields mean here."""
GENERATED = {
    "reference/calls.md": lambda: contract.page(
        ROOT / "protos", "twinserve/v1", "Calls and messages", CALLS
    ),
    "reference/inference.md": lambda: contract.page(
        ROOT / "protos", "twinserve/oip", "Open Inference Protocol: messages", INFERENCE
    ),
    "reference/commands.md": commands.page,
    "reference/reasons.md": reasons.page,
}
# Copied beside the pages, and opened by links of theirs, under this folder.
REPOSITORY = "repository"

_COMMENT = re.compile(r"^<!--.*?-->\n+", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>(?:\.\./)[^)#\s]*)(?P<section>#[^)]*)?\)")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//[^\s\"'>]+"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and what pages link to outside docs/."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    linked = set()
    for file in files.documentation_pages():
        if file.generated_by is None:
            for one in _LINK.finditer(file.content_string):
                path = _outside(file.src_uri, one["target"])
                if path is not None and path.is_file() and path.suffix != ".md":
                    linked.add(path)
    for path in sorted(linked):
        name = f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take out what is for tests, and mend the links that leave docs/."""
    return mended(markdown, page.file.src_uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site whose pages load something from elsewhere.

    Raises:
        PluginError: a page does, with its name and what it loads.
    """
    found = fetched(Path(config.site_dir))
    if found is not None:
        raise PluginError(f"the site would not open without a network: {found}")


def mended(markdown: str, page: str) -> str:
    """Return a page without comments for tests, its links out of docs/ pointed at copies.

    Args:
        markdown: of the page.
        page: its path below docs/.
    """
    pieces = _FENCE.split(markdown)
    for index in range(0, len(pieces), 2):  # those outside fences
        plain = _COMMENT.sub("", pieces[index])
        pieces[index] = _LINK.sub(lambda one: _mended(one, page), plain)
    return "".join(pieces)


def fetched(site: Path) -> str | None:
    """Return a page of a folder, and what it would load from elsewhere; None where none would."""
    for page in sorted(site.rglob("*.html")):
        found = _FETCHED.search(page.read_text(encoding="utf-8"))
        if found is not None:
            return f"{page.relative_to(site)} has {found[0]}"
    return None


def _outside(page: str, target: str) -> Path | None:
    """Return what a link names where that lies outside docs/, else None."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") else ROOT / path


def _mended(link: re.Match[str], page: str) -> str:
    path = _outside(page, link["target"])
    if path is None or not path.exists():
        return link[0]
    name = path.relative_to(ROOT).as_posix()
    up = "../" * page.count("/")
    if name == "protos/twinserve/v1":
        return f"[{link['text']}]({up}reference/calls.md)"
    if path.is_dir() or path.suffix == ".md":
        return link["text"] if name in link["text"] else f"{link['text']} (`{name}`)"
    return f"[{link['text']}]({up}{REPOSITORY}/{name})"
