"""What is left of the limit when pictures come as JPEG, and must be decoded first?

The limit is decoding and running on the same cores, nothing else. A picture of 500 x 375 is made
here with the spectrum of photographs (amplitude falling with frequency), unless a real one is
given.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.serving import figures, forms
from benchmarks.serving.report import Aim, Line
from benchmarks.serving.stage import RAW, Stage

TABLE = "JPEGs of 500 x 375"
WIDTH, HEIGHT, QUALITY = 500, 375, 85
IN_FLIGHT = 32
LEAST = 0.9
SEED = 8


def photograph(seed: int = SEED) -> bytes:
    """Make a JPEG as large and as hard to decode as a photograph of that size."""
    generator = np.random.default_rng(seed)
    across, down = np.fft.fftfreq(WIDTH)[None], np.fft.fftfreq(HEIGHT)[:, None]
    falling = 1 / np.maximum(np.hypot(across, down), 1 / WIDTH) ** 1.2
    # Photographs differ more in brightness than in colour.
    brightness, *colours = [
        np.fft.ifft2(np.fft.fft2(generator.standard_normal((HEIGHT, WIDTH))) * falling).real
        for _ in range(4)
    ]
    planes = np.stack([brightness + 0.3 * colour for colour in colours], axis=2)
    planes = 128 + 50 * (planes - planes.mean()) / planes.std()
    file = io.BytesIO()
    Image.fromarray(planes.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def measure(stage: Stage, given: Path | None) -> None:
    """Ask raw onnxruntime, the decoder and ours in turn."""
    picture = stage.folder / "picture.jpg"
    picture.write_bytes(photograph() if given is None else given.read_bytes())
    body = stage.folder / "picture.body"
    body.write_bytes(forms.pictures([picture.read_bytes()]))
    least = 4 * stage.subject.manifest.dimension
    limits: list[float] = []
    rates: list[float] = []
    for order in stage.turns([RAW, "ours"]):
        for name in order:
            if name == RAW:
                decoding = stage.limit.decoding(picture, stage.setting.seconds / 3)
                raw = stage.limit.rate(stage.setting.seconds)
                limits.append(figures.with_decoding(raw, decoding, stage.cores))
            else:
                with stage.ours.turn():
                    window = stage.ours.load(body, IN_FLIGHT, stage.setting.seconds, least)
                rates.append(window.rate)
    share = figures.ratios(rates, limits)
    stage.report.lines.append(
        Line(
            TABLE,
            str(stage.subject),
            f"{IN_FLIGHT} in flight",
            "ours",
            {
                "per second": f"{figures.spread(rates):.0f}",
                "decode and run": f"{figures.spread(limits):.0f}",
                "of that": f"{share:.2f}",
                "bytes": str(picture.stat().st_size),
            },
            aims=(
                Aim(
                    f">= {LEAST} of decoding and running ({share.median:.3f})",
                    share.median >= LEAST,
                ),
            ),
            windows={"rates": rates, "limits": limits},
        )
    )
