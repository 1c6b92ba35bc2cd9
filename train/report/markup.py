"""HTML and SVG from nested calls; whatever is not markup yet is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

# Elements of HTML that have no end tag.
_VOID = frozenset(("br", "img", "meta", "col"))

Content: TypeAlias = "str | Iterable[Content] | None"


class Markup(str):
    """Text that is HTML already, and is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *content: Content, **attributes: str | float | None) -> Markup:
    """Return an element; `class_` stands for class, `stroke_width` for stroke-width.

    Attributes that are None are left out, and so is content that is None.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(content)}</{name}>")


def joined(content: Content) -> Markup:
    """Return content in a row, escaped where it is not markup."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(content, quote=False))
    return Markup("".join(joined(part) for part in content))


def _attribute(value: str | float) -> str:
    return html.escape(value if isinstance(value, str) else f"{value:.6g}")
