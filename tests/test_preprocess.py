"""Preprocessing: the same pixels for ever, and the right error for whatever is no picture."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinserve.errors import (
    EmptyInput,
    LimitExceeded,
    ManifestError,
    UndecodableImage,
    WrongShape,
)
from twinserve.manifest import ImageInput
from twinserve.preprocess import check_contract, check_pixels, decode_image

PICTURES = Path(__file__).parent / "fixtures" / "images"
DIGESTS = json.loads((PICTURES / "digests.json").read_text())
CONTRACTS = {
    "L stretch bilinear": ImageInput(28, 28, 1, "L"),
    "RGB crop bicubic": ImageInput(32, 24, 3, "RGB", resize="crop", resample="bicubic"),
    "RGB pad lanczos": ImageInput(24, 32, 3, "RGB", resize="pad", resample="lanczos"),
    "BGR stretch box": ImageInput(16, 16, 3, "BGR", resample="box"),
}
GREY = ImageInput(28, 28, 1, "L")
COLOR = ImageInput(37, 45, 3, "RGB")  # the fixtures' own size, so that nothing is resized


def picture(name: str) -> bytes:
    return (PICTURES / name).read_bytes()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", sorted(DIGESTS))
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_fixture_picture_gives_the_pixels_it_always_gave(name: str, contract: str) -> None:
    pixels = decode_image(picture(name), CONTRACTS[contract])
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == DIGESTS[name][contract]


def test_every_fixture_picture_has_its_digests() -> None:
    on_disk = {path.name for path in PICTURES.iterdir() if path.suffix not in (".py", ".json")}
    assert on_disk - {"__pycache__"} == set(DIGESTS)
    assert len(DIGESTS) >= 20


def test_lossless_forms_of_one_picture_give_the_same_pixels() -> None:
    forms = ("rgb.png", "rgb16.png", "rgb.bmp", "lossless.webp")
    pixels = [decode_image(picture(name), COLOR) for name in forms]
    assert pixels[0].shape == (37, 45, 3)
    for other in pixels[1:]:
        np.testing.assert_array_equal(other, pixels[0])


def test_one_bit_drawings_are_turned_to_grey_before_they_are_resized() -> None:
    drawing = Image.new("1", (56, 56), 1)
    for step in range(56):
        drawing.putpixel((step, step), 0)
    pixels = decode_image(encoded(drawing), GREY)
    assert set(np.unique(pixels)) - {0, 255}, "nearest neighbour would leave black and white only"


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    contract = ImageInput(1, 4, 1, "L")
    pixels = decode_image(encoded(Image.fromarray(levels)), contract)
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    invisible = Image.new(mode, (4, 4), (0,) * len(mode))
    assert (decode_image(encoded(invisible), ImageInput(4, 4, 3, "RGB")) == 255).all()


def test_a_transparent_palette_colour_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    pixels = decode_image(buffer.getvalue(), ImageInput(1, 2, 3, "RGB"))
    assert pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_the_orientation_is_applied(name: str) -> None:
    # The disc lies at column 14, row 11 of a picture 37 high; a quarter turn clockwise brings it
    # to column 37 - 1 - 11, row 14.
    pixels = decode_image(picture(name), ImageInput(45, 37, 3, "RGB"))
    np.testing.assert_allclose(pixels[14, 37 - 1 - 11], (230, 30, 90), atol=12)


def test_bgr_is_rgb_with_its_channels_turned_around() -> None:
    rgb = decode_image(picture("rgb.png"), ImageInput(16, 16, 3, "RGB"))
    bgr = decode_image(picture("rgb.png"), ImageInput(16, 16, 3, "BGR"))
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])
    assert bgr.flags.c_contiguous


@pytest.mark.parametrize(
    ("animated", "still"),
    [
        ("two_frames.gif", "palette.png"),
        ("two_frames.png", "rgb.png"),
        ("two_frames.webp", "rgb.png"),
    ],
)
def test_an_animation_gives_its_first_frame(animated: str, still: str) -> None:
    first = decode_image(picture(animated), COLOR)
    np.testing.assert_array_equal(first, decode_image(picture(still), COLOR))


def test_several_pictures_in_one_jpeg_give_the_first() -> None:
    first, second = Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert (decode_image(buffer.getvalue(), ImageInput(8, 8, 3, "RGB")) == 0).all()


def test_cmyk_is_ink_and_not_light() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow: red
    pixels = decode_image(encoded(ink, "JPEG"), ImageInput(8, 8, 3, "RGB"))
    np.testing.assert_allclose(pixels[4, 4], (254, 0, 0), atol=3)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3, 1)])
@pytest.mark.parametrize("rule", ["stretch", "crop", "pad"])
def test_a_sliver_keeps_its_ink_under_every_resize_rule(size: tuple[int, int], rule: str) -> None:
    black = encoded(Image.new("L", size, 0))
    pixels = decode_image(black, ImageInput(28, 28, 1, "L", resize=rule))
    assert pixels.shape == (28, 28, 1)
    assert pixels.min() == 0


def test_padding_keeps_the_proportions_and_centres() -> None:
    black = encoded(Image.new("L", (40, 20), 0))
    pixels = decode_image(black, ImageInput(20, 20, 1, "L", resize="pad"))[:, :, 0]
    assert (pixels[:5] == 255).all()
    assert (pixels[5:15] == 0).all()
    assert (pixels[15:] == 255).all()


def test_no_bytes_are_an_empty_input() -> None:
    with pytest.raises(EmptyInput, match="no bytes"):
        decode_image(b"", GREY)


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_a_picture_cut_short_is_undecodable_or_whole(name: str) -> None:
    whole = picture(name)
    refused = 0
    for share in (0.02, 0.1, 0.3, 0.5, 0.7):
        try:
            decode_image(whole[: max(1, int(len(whole) * share))], GREY)
        except UndecodableImage:
            refused += 1


def test_random_bytes_are_undecodable() -> None:
    generator = np.random.default_rng(11)
    for length in (1, 2, 7, 100, 5000):
        with pytest.raises(UndecodableImage, match="cannot be decoded"):
            decode_image(generator.bytes(length), GREY)


@pytest.mark.parametrize("side", [7_000, 12_000, 60_000])
def test_a_bomb_is_refused_from_its_header(side: int) -> None:
    # Pillow itself is silent at the first, warns of the second and raises at the third.
    with pytest.raises(LimitExceeded, match="the limit") as caught:
        decode_image(png_header(side, side), GREY)
    assert caught.value.metadata["limit"] == "40000000"


def test_the_pixel_limit_counts_both_sides_and_is_inclusive() -> None:
    data = encoded(Image.new("L", (30, 20)))
    assert decode_image(data, GREY, max_pixels=600).shape == (28, 28, 1)
    with pytest.raises(LimitExceeded, match="30 x 20 = 600 pixels, the limit is 599"):
        decode_image(data, GREY, max_pixels=599)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "DDS", "AVIF"])
def test_formats_outside_the_list_are_refused_and_the_list_is_named(kind: str) -> None:
    with pytest.raises(UndecodableImage, match="JPEG, PNG, WEBP, BMP, GIF"):
        decode_image(encoded(Image.new("RGB", (32, 32)), kind), GREY)


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (256, 256), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert decode_image(data, GREY).shape == (28, 28, 1)
    last = data.rindex(b"\xff\xda")
    endless = data[:-2] + data[last : last + 10] * 100_000 + data[-2:]
    with pytest.raises(LimitExceeded, match="scans, the limit is 200"):
        decode_image(endless, GREY)


def test_a_jpeg_whose_exif_comes_in_crumbs_is_refused_before_it_is_decoded() -> None:
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    crumbs = data[:2] + b"\xff\xe1\x00\x09Exif\0\0a" * 100_000 + data[2:]
    with pytest.raises(LimitExceeded, match="EXIF parts, the limit is 1000"):
        decode_image(crumbs, GREY)


def test_ready_pixels_are_taken_as_they_are() -> None:
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(check_pixels(pixels, GREY)[:, :, 0], pixels)
    np.testing.assert_array_equal(check_pixels(pixels[:, :, None], GREY)[:, :, 0], pixels)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((28, 28), np.float32),
        np.zeros((28, 27), np.uint8),
        np.zeros((1, 28, 28, 1), np.uint8),
        np.zeros((28, 28, 3), np.uint8),
    ],
)
def test_ready_pixels_of_another_shape_or_type_are_refused(array: np.ndarray) -> None:
    with pytest.raises(WrongShape, match=r"uint8 \[28, 28, 1\]"):
        check_pixels(array, GREY)


def test_a_twin_of_another_decoder_is_refused() -> None:
    check_contract(GREY)
    with pytest.raises(ManifestError, match="pillow-99"):
        check_contract(ImageInput(28, 28, 1, "L", decoder="pillow-99"))
