"""How pictures become pixels: from a model's preprocessor_config.json, flags and guesses.

Out: an `ImageInput` that twinserve's own preprocessing carries out, and what has to happen inside
the graph (a centre crop, scale, mean and std). A rule that cannot be repeated is refused. One is
repeated nearly: "shorter side to s, then the centre c x c" becomes "largest centred square to
s x s, then the centre c x c", which is the same on square pictures, and on others differs by the
rounding of the longer side; `difference` measures it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinserve.errors import ConfigError
from twinserve.manifest import COLOR_ORDERS, RESAMPLES, RESIZES, ImageInput
from twinserve.preprocess import DECODER, Pixels, resize
from twinserve.train.pretrained.settings import Answers, Settings

FILE = "preprocessor_config.json"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Pillow's numbers, as preprocessor_config.json writes them.
_RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_PILLOW = {name: Image.Resampling(number) for number, name in _RESAMPLES.items()}
# Where "size" is one number, these mean the shorter side by it, others both sides.
_SHORTER_SIDE = ("CLIP", "Bit", "Chinese", "Siglip2")


@dataclass(frozen=True)
class Pictures:
    """From a picture to what a model's first layer takes."""

    contract: ImageInput
    crop: tuple[int, int] | None  # centre that the graph cuts out: height, width
    scale: float  # multiplies pixels of 0..255
    mean: tuple[float, ...]  # per channel, after scale
    std: tuple[float, ...]
    alike: bool  # whether pixels are the model's own on every picture, not on square ones alone

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width that the model sees."""
        return self.crop or (self.contract.height, self.contract.width)


def stated(config: dict[str, Any], settings: Settings, answers: Answers) -> Pictures:
    """Read a preprocessor_config.json of transformers.

    Raises:
        ConfigError: a rule that twinserve's preprocessing cannot repeat.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if config.get("do_resize", True) is not True:
        raise ConfigError(f"{FILE} resizes nothing, and a twin's pictures are of one size")
    if config.get("do_pad") is True:
        raise ConfigError(f"{FILE} pads pictures after resizing, which twinserve does not repeat")
    resample = config.get("resample", 2)
    if resample not in _RESAMPLES:
        raise ConfigError(
            f"{FILE} resamples by Pillow's filter {resample!r}; known are "
            f"{', '.join(f'{number} ({name})' for number, name in _RESAMPLES.items())}"
        )
    rule, size, crop = _geometry(kind, config)
    scale = float(config.get("rescale_factor") or 1 / 255)
    normalizes = config.get("do_normalize", True) is True
    contract = ImageInput(*size, 3, "RGB", rule, _RESAMPLES[resample], DECODER)
    found = Pictures(
        contract=contract,
        crop=None if crop == size else crop,
        scale=scale if config.get("do_rescale", True) is True else 1.0,
        mean=tuple(config.get("image_mean") or (0.0,) * 3) if normalizes else (0.0,) * 3,
        std=tuple(config.get("image_std") or (1.0,) * 3) if normalizes else (1.0,) * 3,
        alike=rule == "stretch",
    )
    if len(found.mean) != 3 or len(found.std) != 3:
        raise ConfigError(f"{FILE} has a mean of {len(found.mean)} channels; RGB has 3")
    return _asked(found, settings, answers, where=FILE)


def guessed(
    size: tuple[int, int] | None,
    channels: int,
    *,
    normalizes_inside: str | None,
    takes_uint8: bool,
    settings: Settings,
    answers: Answers,
) -> Pictures:
    """Guess for a graph that nothing is known of but its input.

    Args:
        size: height and width, where the graph fixes them.
        channels: 1 or 3.
        normalizes_inside: what the graph begins with, where that is arithmetic with constants.
        takes_uint8: it takes pixels as they are.
        settings: flags.
        answers: is told.

    Raises:
        ConfigError: an open size, and no flag.
    """
    if size is not None:
        size = answers.read("size", settings.size, size, "the graph", "--size")
    elif settings.size is None:
        raise ConfigError(
            "the graph leaves height and width open, and a twin's pictures are of one size; "
            "give --size HEIGHTxWIDTH, that of its training"
        )
    else:
        size = answers.read("size", settings.size, settings.size, "", "--size")
    mean, std = (0.0,) * channels, (1.0,) * channels
    scale = 1 / 255
    because = "no file says; the graph takes float pixels"
    if takes_uint8:
        scale, because = 1.0, "the graph takes uint8 pixels"
    elif normalizes_inside is not None:
        scale, because = 1.0, f"the graph begins with {normalizes_inside}: it normalises itself"
    elif channels == 3 and max(size) <= 160:
        (mean, std), because = _HALF, "small colour pictures: usual for faces"
    elif channels == 3:
        (mean, std), because = IMAGENET, "usual for networks trained on ImageNet"
    found = Pictures(
        ImageInput(*size, channels, "RGB" if channels == 3 else "L", decoder=DECODER),
        None,
        scale,
        mean,
        std,
        alike=True,
    )
    return _asked(found, settings, answers, because=because)


def told(prepared: Pictures) -> dict[str, object]:
    """Say how pictures are prepared, and how far that is from the model's own way."""
    return {
        "scale": float(f"{prepared.scale:.6g}"),
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "centre": None if prepared.crop is None else list(prepared.crop),
        # Of 255, on pictures that are not square; others are prepared alike.
        "difference": None if prepared.alike else difference(prepared),
    }


def difference(pictures: Pictures) -> dict[str, float]:
    """Measure, on drawn pictures that are not square, how far pixels are from the model's own.

    Returns:
        mean and largest absolute difference, of 255.
    """
    generator = np.random.default_rng(0)
    apart: list[NDArray[np.float64]] = []
    for width, height in ((600, 400), (400, 600), (1023, 767), (333, 500)):
        coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        ours = _centre(resize(image, pictures.contract), pictures.seen)
        apart.append(np.abs(ours.astype(np.float64) - _as_the_library(image, pictures)))
    return {
        "mean": float(f"{np.mean([np.mean(entry) for entry in apart]):.3g}"),
        "largest": float(max(np.max(entry) for entry in apart)),
    }


def _as_the_library(image: Image.Image, pictures: Pictures) -> NDArray[np.float64]:
    """Shorter side to s, the longer one rounded down; then the centre."""
    short = pictures.contract.height
    width, height = (
        (short, int(short * image.height / image.width))
        if image.width <= image.height
        else (int(short * image.width / image.height), short)
    )
    whole = image.resize((width, height), _PILLOW[pictures.contract.resample])
    return _centre(np.asarray(whole), pictures.seen).astype(np.float64)


def _centre(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    top = (pixels.shape[0] - size[0]) // 2
    left = (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def _geometry(
    kind: str, config: dict[str, Any]
) -> tuple[str, tuple[int, int], tuple[int, int] | None]:
    """Return the resize rule, the size it leads to, and the centre that is cut out of it."""
    size = config.get("size")
    crop = _sides(config.get("crop_size")) if config.get("do_center_crop") is True else None
    if kind.startswith("ConvNext"):
        side = _side(size)
        if side is not None and side < 384:
            # Shorter side to size / crop_pct, then the centre; above, the whole is stretched.
            grown = int(side / (config.get("crop_pct") or 224 / 256))
            return "crop", (grown, grown), (side, side)
        size = {"height": side, "width": side}
    if isinstance(size, dict) and type(size.get("shortest_edge")) is int:
        edge = size["shortest_edge"]
        return _shorter(edge, crop)
    if isinstance(size, int) and kind.startswith(_SHORTER_SIDE):
        return _shorter(size, crop)
    sides = _sides(size)
    if sides is None:
        raise ConfigError(
            f"{FILE} resizes to {size!r}, which leaves pictures of many sizes or is unknown; a "
            "twin's are of one size"
        )
    return "stretch", sides, crop


def _shorter(
    edge: int, crop: tuple[int, int] | None
) -> tuple[str, tuple[int, int], tuple[int, int] | None]:
    if crop is None or max(crop) > edge:
        raise ConfigError(
            f"{FILE} brings the shorter side to {edge} and then "
            f"{'cuts nothing' if crop is None else f'takes a centre of {crop}'}, which leaves "
            "pictures of many sizes; a twin's are of one size"
        )
    return "crop", (edge, edge), crop


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if type(size) is int and size > 0 else None


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        sides = (size.get("height"), size.get("width"))
    elif isinstance(size, list):
        sides = (size[0], size[-1]) if size else (None, None)
    else:
        sides = (size, size)
    if all(type(side) is int and side > 0 for side in sides):
        return sides  # type: ignore[return-value]
    return None


def _asked(
    found: Pictures,
    settings: Settings,
    answers: Answers,
    *,
    where: str | None = None,
    because: str = "",
) -> Pictures:
    """Put flags before what was found, and tell of each."""

    def take(question: str, flag: Any, other: Any, name: str, reason: str) -> Any:
        if where is not None:
            return answers.read(question, flag, other, where, name)
        return answers.guess(question, flag, other, reason, name)

    contract = found.contract
    usual = "usual"
    order = take("colour order", settings.color_order, contract.color_order, "--color-order", usual)
    rule = take("resize", settings.resize, contract.resize, "--resize", usual)
    resample = take("resample", settings.resample, contract.resample, "--resample", usual)
    scale = take("scale", settings.scale, found.scale, "--scale", because)
    mean = take("mean", settings.mean, found.mean, "--mean", because)
    std = take("std", settings.std, found.std, "--std", because)
    for name, value, known in (
        ("--color-order", order, tuple(COLOR_ORDERS)),
        ("--resize", rule, RESIZES),
        ("--resample", resample, RESAMPLES),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; known are {', '.join(known)}")
    channels = COLOR_ORDERS[order]
    if channels != contract.channels:
        raise ConfigError(
            f"--color-order {order} has {channels} channel(s), the model takes {contract.channels}"
        )
    mean, std = (
        _per_channel(name, value, channels) for name, value in (("mean", mean), ("std", std))
    )
    if not all(entry > 0 for entry in std) or not scale > 0:
        raise ConfigError(f"scale and std must be above 0; they are {scale} and {std}")
    asked = dataclasses.replace(contract, color_order=order, resize=rule, resample=resample)
    if settings.size is not None and settings.size != (contract.height, contract.width):
        if found.crop is not None:
            raise ConfigError(f"--size does not go with the centre crop of {FILE}; leave it out")
        asked = dataclasses.replace(asked, height=settings.size[0], width=settings.size[1])
    alike = found.alike if asked.resize == contract.resize else True
    return Pictures(asked, found.crop, scale, mean, std, alike)


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise ConfigError(f"--{name} has {len(values)} values, the model has {channels} channel(s)")
    return tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)
