"""What a page takes for granted that its reader has, small and made in no time, by its name.

`python -m tests.house.stand_ins photos resnet18.pth` makes each in the folder at hand. Pages ask for
them in their unseen blocks.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def photos() -> None:
    """12 classes of 8 pictures, each class a pattern of strokes, as PNG and as JPEG."""
    from tests.train.drawings import files

    for name, picture in files(groups=1, classes=12, items=8).items():
        path = Path("photos", *Path(name).parts[-2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(picture)).save(path.with_suffix(".jpg"), quality=95)


def snapshots() -> None:
    """Three pictures of noise of alice, bob and ann each, and one of them as probe.jpg."""
    noise = np.random.default_rng(0)
    for who in ("alice", "bob", "ann"):
        for number in range(3):
            path = Path(f"photos/{who}/{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(255, size=(28, 28), dtype=np.uint8)).save(path)
    Image.open("photos/alice/0.jpg").save("probe.jpg")


def faces() -> None:
    """A twin `faces` in versions: 3 where a server begins, 4, its int8 form, and 5 to load later."""
    from tests.twins import small_image_twin

    folder = Path("twins/faces")
    folder.mkdir(parents=True)
    Path("faces-v3.onnx").write_bytes(small_image_twin("faces", "3"))
    for version in "45":
        (folder / f"v{version}.onnx").write_bytes(small_image_twin("faces", version))
    (folder / "v4.int8.onnx").write_bytes(small_image_twin("faces", "4", precision="int8"))


def tables() -> None:
    """Questions with labels, pairs judged 0 or 1 or all the same, all of a few words."""
    from tests.train.questions import rows, write_csv

    labelled = rows()
    write_csv(Path("questions.csv"), labelled, ("text", "label"))
    pairs = [
        (first, second, int(topic == other))
        for n, (first, topic) in enumerate(labelled)
        for second, other in (labelled[(n + 1) % len(labelled)], labelled[(n * 7) % len(labelled)])
        if first != second
    ]
    fresh = [
        (f"{a} {n}", f"{b} {n}", str(same)) for n, (a, b, same) in enumerate(pairs * 2)
    ]  # so that no item hangs together with another pair's
    write_csv(Path("judged.csv"), fresh, ("first", "second", "same"))
    alike = [one for one in fresh if one[2] == "1"]
    write_csv(Path("asked.csv"), alike, ("first", "second", "same"))


def text_encoder() -> None:
    """A folder of a tiny BERT, in the place of all-MiniLM-L6-v2."""
    from tests.export.imports.conftest import save_encoder

    save_encoder(Path("all-MiniLM-L6-v2"))


def vision_encoder() -> None:
    """A folder of a tiny vision transformer, in the place of dinov2-small."""
    from tests.train.vision import save

    save(Path("dinov2-small"), "dinov2")


def resnet_weights() -> None:
    """A file of random weights of a whole ResNet-18."""
    import torch

    from twinserve.train.resnet import ResNet

    network = ResNet(18, channels=3, outputs=1000, stem="imagenet", cut="")
    torch.save(network.state_dict(), "resnet18.pth")


MAKERS: dict[str, Callable[[], None]] = {
    "photos": photos,
    "snapshots": snapshots,
    "faces": faces,
    "tables": tables,
    "all-MiniLM-L6-v2": text_encoder,
    "dinov2-small": vision_encoder,
    "resnet18.pth": resnet_weights,
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        MAKERS[name]()
