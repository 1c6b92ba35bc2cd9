"""Damaged pictures, made from a seed and decoded in a process of its own under a limit of memory.

    python -m tests.image_fuzz SEED COUNT

Prints what became of them as JSON. A crash ends the process with a signal, a hang with the watchdog
of `faulthandler`, and what takes too much memory with a MemoryError; each leaves the number of the
picture on standard error, and `python -m tests.image_fuzz SEED COUNT --keep NUMBER` writes it to a
file.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import random
import resource
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from twinserve.errors import EmptyInput, LimitExceeded, UndecodableImage
from twinserve.manifest import ImageInput
from twinserve.preprocess import decode_image

PICTURES = Path(__file__).parent / "fixtures" / "images"
CONTRACTS = (ImageInput(28, 28, 1, "L"), ImageInput(32, 24, 3, "RGB", resize="pad"))
MAX_PIXELS = 1_000_000
ROOM = 256 << 20  # bytes of address space beyond what the imports took
# So many pictures may take so many seconds before the watchdog ends the process.
WATCHED, PATIENCE = 20, 40.0
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)


def seeds() -> list[bytes]:
    """Whole pictures of the five formats: the fixtures, and plain ones of other modes and sizes."""
    found = [
        path.read_bytes()
        for path in sorted(PICTURES.iterdir())
        if path.suffix in (".png", ".jpg", ".webp", ".bmp", ".gif")
    ]
    noise = np.random.default_rng(3).integers(0, 256, (61, 83, 4), np.uint8)
    for kind, mode, options in (
        ("PNG", "RGBA", {}),
        ("JPEG", "RGB", {"progressive": True, "restart_marker_rows": 1}),
        ("JPEG", "CMYK", {}),
        ("WEBP", "RGBA", {"quality": 40}),
        ("BMP", "L", {}),
        ("BMP", "RGBA", {}),
        ("GIF", "P", {"interlace": True}),
    ):
        file = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(file, kind, **options)
        found.append(file.getvalue())
    return found


def damaged(chance: random.Random, pictures: list[bytes]) -> bytes:
    """One picture with up to four kinds of damage, and now and then only one changed bit."""
    data = bytearray(chance.choice(pictures))
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not data:
            break
        at = chance.randrange(len(data))
        # Headers say how large everything is, so they are hit as often as all the rest.
        at = chance.randrange(min(len(data), 64)) if chance.random() < 0.5 else at
        match chance.randrange(8):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 4] = chance.randbytes(4)
            case 2:
                width, order = chance.choice((1, 2, 4)), chance.choice(("little", "big"))
                value = chance.choice(EXTREMES) & ((1 << 8 * width) - 1)
                data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 3:
                del data[at:]
            case 4:
                del data[at : at + chance.randrange(1, 64)]
            case 5:
                data[at:at] = data[at : at + chance.randrange(1, 64)] * chance.randrange(1, 50)
            case 6:
                other = chance.choice(pictures)
                data[at:] = other[chance.randrange(len(other)) :]
            case 7:
                data[at:at] = chance.randbytes(chance.randrange(1, 64))
    return bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--keep", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of much that a damaged picture holds
    pictures = seeds()
    for whole in pictures:
        decode_image(whole, CONTRACTS[0])  # plugins are imported before memory is limited
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    chance = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(arguments.count):
        data = damaged(chance, pictures)
        contract = chance.choice(CONTRACTS)
        if number == arguments.keep:
            Path(f"damaged-{arguments.seed}-{number}").write_bytes(data)
            return
        if number % WATCHED == 0:  # each time costs a thread
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
        began = time.process_time()
        try:
            pixels = decode_image(data, contract, MAX_PIXELS)
        except (EmptyInput, LimitExceeded, UndecodableImage) as error:
            outcomes[error.reason] += 1
        except BaseException:
            print(f"picture {number} of seed {arguments.seed}", file=sys.stderr)
            raise
        else:
            wanted = (contract.height, contract.width, contract.channels)
            assert pixels.shape == wanted, f"picture {number}: {pixels.shape}"
            assert pixels.dtype == np.uint8
            outcomes["decoded"] += 1
        slowest = max(slowest, time.process_time() - began)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"outcomes": outcomes, "slowest": slowest}))


if __name__ == "__main__":
    main()
