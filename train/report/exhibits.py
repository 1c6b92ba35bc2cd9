"""Items as a reader sees them: a picture as a data URI, a text as it was written, a vector's name.

In: the rows of a part. Out: markup. Pictures are as the twin takes them, so that what a reduction
to 28 pixels has lost is lost here too.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from twinserve.train.data import Labelled
from twinserve.train.report.markup import Markup, tag

# Larger pictures are shown smaller, so that the page stays small.
_LARGEST = 160
# Of photographs JPEG takes a tenth of the bytes; drawings of a few pixels stay exact.
_EXACT = 64
_LONGEST_TEXT = 280


def is_pictures(part: Labelled) -> bool:
    """Tell whether rows are pixels: uint8 [n, height, width, channels]."""
    rows = part.rows
    return isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.ndim == 4


def exhibit(part: Labelled, item: int) -> Markup:
    """Show one item of a part."""
    if is_pictures(part):
        return tag(
            "img",
            src=data_uri(np.asarray(part.rows[item])),
            alt=": ".join(filter(None, (class_name(part, item), part.names[item]))),
            class_="picture",
        )
    if isinstance(part.rows, np.ndarray):
        return tag("p", f"vector {part.names[item]}", class_="text")
    text = part.names[item]
    cut = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT].rstrip()} …"
    return tag("p", cut, class_="text", title=text if cut != text else None)


def class_name(part: Labelled, item: int) -> str:
    """Return the name of an item's class."""
    return part.class_names[int(part.labels[item])]


def data_uri(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], largest: int = _LARGEST
) -> str:
    """Return a picture, uint8 [height, width, channels], as a data URI."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((largest, largest))
    kind = "png" if max(pixels.shape[:2]) <= _EXACT else "jpeg"
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "png", optimize=True)
    else:
        picture.save(buffer, "jpeg", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
