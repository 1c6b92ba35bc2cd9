"""From bytes to the pixels that a twin takes: one path for training, export and serving.

Pillow is part of the contract: the same file gives the same pixels wherever it is decoded, and
`DECODER` stands in the input contract, hence in the space's id. The order is fixed: open, check
the size before a pixel is decoded, decode, apply the orientation, bring 16 bits to 8, lay
transparency on white, convert to L or RGB, and only then resize (Pillow resizes palette and 1-bit
pictures by nearest neighbour without a word). No draft mode: it would let the requested size
change the pixels. Five formats and no more: each decoder is a door for whoever sends pictures.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from twinserve.errors import (
    EmptyInput,
    LimitExceeded,
    ManifestError,
    UndecodableImage,
    WrongShape,
)
from twinserve.manifest import ImageInput

Pixels = NDArray[np.uint8]

# Names the steps above; raise it whenever they would give other pixels.
DECODER = "pillow-1"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 40_000_000
# A scan of ten bytes makes the decoder pass over every pixel again, so 16 MB of them would keep a
# thread for hours; EXIF that comes in a million crumbs, for a minute. Cameras write up to a dozen
# of the first, and one of the second.
MAX_SCANS, MAX_EXIF_PARTS = 200, 1000
_STRIP = 256  # rows
_SCAN, _EXIF = b"\xff\xda", b"\xff\xe1"

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode_image(data: bytes, contract: ImageInput, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a picture into uint8 [height, width, channels] as the contract asks.

    Raises:
        EmptyInput: no bytes.
        LimitExceeded: more pixels than `max_pixels`, told from the header alone; or a JPEG of
            more passes or parts than anybody's camera writes.
        UndecodableImage: not a picture of `FORMATS`, or a truncated or damaged one.
    """
    if not data:
        raise EmptyInput("the image holds no bytes; send the file's content")
    try:
        image = _opened(data, contract, max_pixels)
    except LimitExceeded:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitExceeded(
            f"the image has more pixels than the limit, {max_pixels} "
            f"({str(error)[:200]}); send a smaller one",
            metadata={"limit": str(max_pixels)},
        ) from error
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImage(
            "the image cannot be decoded: its bytes are of no known format; send a whole file in "
            f"one of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # what a plugin raises on damaged bytes is no promise of Pillow's
        raise UndecodableImage(
            f"the image cannot be decoded ({str(error)[:200]}); "
            f"send a whole file in one of {', '.join(FORMATS)}"
        ) from error
    return resize(image, contract)


def check_contract(contract: ImageInput) -> None:
    """Refuse a twin whose pixels this build cannot reproduce; call it before serving one.

    Raises:
        ManifestError: its decoder is not `DECODER`.
    """
    if contract.decoder != DECODER:
        raise ManifestError(
            f"the twin's pixels are decoded by {contract.decoder!r}, this twinserve has "
            f"{DECODER!r}; serve it with the version that exported it, or export it again"
        )


def resize(image: Image.Image, contract: ImageInput) -> Pixels:
    """Bring a picture of the right mode to the contract's size: uint8 [height, width, channels]."""
    height, width = contract.height, contract.width
    resampling = _RESAMPLING[contract.resample]
    if contract.resize == "crop":
        image = ImageOps.fit(image, (width, height), method=resampling)
    elif contract.resize == "pad":
        image = _padded(image, width, height, resampling)
    elif image.size != (width, height):
        image = image.resize((width, height), resampling)
    pixels = np.asarray(image, dtype=np.uint8)
    if contract.color_order == "BGR":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.reshape(height, width, contract.channels))


def check_pixels(array: NDArray[np.generic], contract: ImageInput) -> Pixels:
    """Accept ready pixels: uint8 of the contract's exact shape, [height, width] where channels = 1.

    Raises:
        WrongShape: another dtype or shape.
    """
    shape = (contract.height, contract.width, contract.channels)
    if array.dtype == np.uint8 and array.shape == shape and array.flags.c_contiguous:
        return array  # type: ignore[return-value]
    if array.dtype != np.uint8 or (
        array.shape != shape and not (contract.channels == 1 and array.shape == shape[:2])
    ):
        raise WrongShape(
            f"the model takes pixels as uint8 {list(shape)}, not {array.dtype} "
            f"{list(array.shape)}; send that, or the encoded image"
        )
    return np.ascontiguousarray(array.reshape(shape), dtype=np.uint8)


def _opened(data: bytes, contract: ImageInput, max_pixels: int) -> Image.Image:
    """Decode at full size and bring to L or RGB."""
    if data.startswith(b"\xff\xd8"):
        _check_parts(data)
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise LimitExceeded(
            f"the image has {width} x {height} = {width * height} pixels, "
            f"the limit is {max_pixels}; send a smaller one",
            metadata={"limit": str(max_pixels), "value": str(width * height)},
        )
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # otherwise copies what lies upright
    return _to_mode(image, contract)


def _check_parts(data: bytes) -> None:
    """Refuse a JPEG that is cheap to send and dear to decode."""
    for what, marker, most in (("scans", _SCAN, MAX_SCANS), ("EXIF parts", _EXIF, MAX_EXIF_PARTS)):
        found = data.count(marker)
        if found > most:
            raise LimitExceeded(
                f"the JPEG has {found} {what}, the limit is {most}; save it anew, as baseline and "
                "without metadata",
                metadata={"limit": str(most), "value": str(found)},
            )


def _padded(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling
) -> Image.Image:
    """Fit the whole picture inside, centred on white; a sliver keeps at least one line."""
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new(image.mode, (width, height), "white")
    corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(image.resize(inner, resampling), corner)
    return canvas


def _to_mode(image: Image.Image, contract: ImageInput) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        high = np.asarray(image) >> 8
        image = Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
    mode = "L" if contract.color_order == "L" else "RGB"
    if image.has_transparency_data:
        return _on_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """Lay transparency on white, in strips: whole layers would take the picture's memory thrice."""
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, _STRIP):
        box = (0, top, image.width, min(top + _STRIP, image.height))
        layer = image.crop(box).convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        whole.paste(strip.convert(mode), box)
    return whole
