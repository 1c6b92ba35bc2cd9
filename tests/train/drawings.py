"""A small labelled set for the tests: a class is a pattern of strokes, an item a shake."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw(class_seed: int, item_seed: int) -> bytes:
    """Return a PNG of 40 x 40: four strokes of the class, moved a little by the item."""
    strokes = np.random.default_rng(class_seed).uniform(6, 34, size=(4, 4))
    shake = np.random.default_rng([class_seed, item_seed]).normal(0, 1.5, size=(4, 4))
    image = Image.new("L", (40, 40), 255)
    for stroke in strokes + shake:
        ImageDraw.Draw(image).line([float(v) for v in stroke], fill=0, width=2)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def files(groups: int = 3, classes: int = 6, items: int = 6) -> dict[str, bytes]:
    """Return {path: PNG}, with paths such as alphabet1/letter03/05.png."""
    return {
        f"alphabet{group}/letter{letter:02}/{item:02}.png": draw(group * 100 + letter, item)
        for group in range(groups)
        for letter in range(classes)
        for item in range(items)
    }


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    """Write files below a folder, and return it."""
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, content: dict[str, bytes], top: str = "") -> Path:
    """Write files into a zip, below the folder `top`, and return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(top + name, data)
    return path
