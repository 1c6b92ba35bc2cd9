"""A picture of what a search found: each probe beside its nearest hits, right ones framed green.

In: pictures as bytes, with their names. Out: one PNG. Pillow alone is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_TILE, _FRAME, _GAP, _CAPTION, _MARGIN = 76, 4, 10, 30, 32
_HEAD = 112
_INK, _FAINT, _PAPER, _PROBE = "#1c2430", "#6b7480", "#f6f5f1", "#3b4a6b"
# A wrong hit behind the first is no failure of its own, so that its red is fainter.
_RIGHT, _WRONG, _WRONG_LATER = "#2e9e5b", "#d1495b", "#edc4c9"


@dataclass(frozen=True)
class Tile:
    """One picture with its caption; `right` None is a probe."""

    picture: bytes
    caption: str
    note: str = ""
    right: bool | None = None


def draw(
    rows: Sequence[Sequence[Tile]], title: str, subtitle: str, path: Path, panels: int = 2
) -> None:
    """Write the sheet: rows of a probe and its hits, spread over panels side by side."""
    title_font, font, small = (ImageFont.load_default(size) for size in (26, 13, 11))
    height = -(-len(rows) // panels)
    longest = max(len(row) for row in rows)
    step_x, step_y = _TILE + _GAP, _TILE + _CAPTION + _GAP
    # The space between a probe and its hits is wider than between hits, and so is that of panels.
    panel = longest * step_x + 2 * _GAP + _MARGIN
    sheet = Image.new(
        "RGB", (panels * panel + _MARGIN, _HEAD + height * step_y + _MARGIN // 2), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 22), title, fill=_INK, font=title_font)
    pen.text((_MARGIN, 58), subtitle, fill=_FAINT, font=font, spacing=6)
    for index, row in enumerate(rows):
        left = _MARGIN + (index // height) * panel
        top = _HEAD + (index % height) * step_y
        for column, tile in enumerate(row):
            x = left + column * step_x + (2 * _GAP if column else 0)
            _tile(sheet, pen, tile, (x, top), _frame(tile, column))
            middle = x + _TILE // 2
            pen.text((middle, top + _TILE + 3), tile.caption, fill=_INK, font=font, anchor="ma")
            pen.text((middle, top + _TILE + 18), tile.note, fill=_FAINT, font=small, anchor="ma")
    sheet.save(path, optimize=True)


def _frame(tile: Tile, column: int) -> str:
    if tile.right is None:
        return _PROBE
    if tile.right:
        return _RIGHT
    return _WRONG if column == 1 else _WRONG_LATER


def _tile(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int], color: str
) -> None:
    x, y = corner
    pen.rounded_rectangle((x, y, x + _TILE - 1, y + _TILE - 1), radius=6, fill=color)
    inner = _TILE - 2 * _FRAME
    with Image.open(io.BytesIO(tile.picture)) as picture:
        # Grey first: Pillow resizes 1-bit pictures by nearest neighbour.
        shown = picture.convert("L").resize((inner, inner), Image.Resampling.LANCZOS)
    sheet.paste(shown, (x + _FRAME, y + _FRAME))
