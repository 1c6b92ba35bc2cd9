"""What a page takes for granted that its reader has, small and made in no time, by its name.

`python -m tests.house.stand_ins photos resnet18.pth` makes each in the folder at hand. Pages ask
for them in their unseen blocks, or by `<!-- needs: texts.onnx -->`.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = (
    *("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy"),
    *("kim", "leo", "mia", "noah", "olga", "paul", "quinn", "rosa", "sam", "tess"),
    *("uma", "vera", "will", "xenia", "yara", "zoe", "anna", "ben", "cleo", "dora"),
)


def photos() -> None:
    """30 people of 6 pictures, each person a pattern of strokes; one more of alice as new.jpg."""
    from tests.train.drawings import draw

    for seed, name in enumerate(NAMES):
        Path("photos", name).mkdir(parents=True, exist_ok=True)
        for number in range(1, 7):
            save(draw(seed, number), Path("photos", name, f"{number}.jpg"))
    save(draw(0, 9), Path("new.jpg"))


def save(picture: bytes, path: Path) -> None:
    """Write a picture as a JPEG."""
    Image.open(io.BytesIO(picture)).save(path, quality=95)


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
    """A twin `faces`: version 3 to begin with, 4 and its int8 form and 5 to load later."""
    from tests.twins import small_image_twin

    folder = Path("twins/faces")
    folder.mkdir(parents=True)
    Path("faces-v3.onnx").write_bytes(small_image_twin("faces", "3"))
    for version in "45":
        (folder / f"v{version}.onnx").write_bytes(small_image_twin("faces", version))
    (folder / "v4.int8.onnx").write_bytes(small_image_twin("faces", "4", precision="int8"))


def tables() -> None:
    """Questions with labels; pairs of a few words judged 0 or 1, and some that are all the same."""
    from tests.train.questions import rows, write_csv

    labelled = rows()
    shutil.copy("data/banking77/sample.csv", "questions.csv")
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
    """A folder of a small BERT of 144 coordinates, in the place of all-MiniLM-L6-v2."""
    from transformers import BertConfig, BertModel

    from tests.export.imports.conftest import bert, save_encoder

    sizes = {"hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 144}
    config = BertConfig.from_dict({**bert().config.to_dict(), **sizes})
    save_encoder(Path("all-MiniLM-L6-v2"), BertModel(config, add_pooling_layer=False))


def vision_encoder() -> None:
    """A folder of a vision transformer of 9 thin layers, in the place of dinov2-small."""
    from transformers import Dinov2Config, Dinov2Model

    from tests.train.vision import save

    folder = save(Path("dinov2-small"), "dinov2")  # for what prepares its pictures
    config = Dinov2Config.from_pretrained(folder)
    config.hidden_size, config.num_hidden_layers = 144, 9
    Dinov2Model(config).save_pretrained(folder)


def text_twin() -> None:
    """A twin for texts, texts.onnx."""
    from tests.twins import small_text_twin

    Path("texts.onnx").write_bytes(small_text_twin())


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
    "texts.onnx": text_twin,
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        MAKERS[name]()
