"""Vision encoders with torch weights, and what their preprocessing becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ViTModel

from tests.export.imports.conftest import HIDDEN, save_vit, write_json
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export.imports import picture_folder
from twinserve.export.session import GraphSession
from twinserve.train.pretrained import pictures
from twinserve.train.pretrained.picture import is_vision
from twinserve.train.pretrained.pictures import Pictures
from twinserve.train.pretrained.settings import Answers, Settings

STATED = {"image_processor_type": "CLIPImageProcessor", "resample": 3}


def stated(config: dict[str, object], **flags: object) -> Pictures:
    return pictures.stated({**STATED, **config}, Settings(**flags), Answers())


def test_a_vit_becomes_a_twin_that_normalises_pixels_itself(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "vit")
    answers = Answers()
    made = picture_folder.import_folder(folder, Settings(), answers)
    rows = np.random.default_rng(4).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    pixels = (rows / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]
    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        states = ViTModel.from_pretrained(folder).eval()(pixel_values=given).last_hidden_state
    expected = torch.nn.functional.normalize(states[:, 0]).numpy()
    found = GraphSession(made.graph, made.contract)(rows)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(made.source.embed(rows), expected, atol=1e-5)
    assert (made.dimension, made.normalized, made.contract.resize) == (HIDDEN, True, "stretch")
    assert made.origin["pixels"]["difference"] is None
    (pooling,) = (answer for answer in answers.given if answer.question == "pooling")
    assert (pooling.taken, pooling.guessed) == ("cls", True)


def test_an_unknown_pooling_is_refused(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "vit")
    with pytest.raises(ConfigError, match="pooling is 'last'; a picture's is one of cls, mean"):
        picture_folder.import_folder(folder, Settings(pooling=("last",)), Answers())


def test_a_pooler_without_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_vit(tmp_path / "vit")
    kept = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in kept.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lack 2 .*pooler\.dense.*they would be random"):
        picture_folder.import_folder(folder, Settings(pooling=("pooler",)), Answers())


def test_above_two_gigabytes_is_refused(tmp_path: Path) -> None:
    import os

    folder = save_vit(tmp_path / "vit")
    os.truncate(folder / "model.safetensors", 2**31)
    with pytest.raises(ManifestError, match="above the 2 GB"):
        picture_folder.import_folder(folder, Settings(), Answers())


class TestPreprocessing:
    def test_a_shorter_side_and_a_centre_become_a_square_and_a_centre(self) -> None:
        found = stated({"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": True})
        contract = found.contract
        assert (contract.height, contract.width, contract.resize) == (32, 32, "crop")
        assert (found.crop, found.seen, found.alike) == ((28, 28), (28, 28), False)
        # The rounding of a longer side, not another picture.
        assert pictures.difference(found)["mean"] < 3

    def test_square_pictures_are_prepared_alike(self) -> None:
        from PIL import Image

        from twinserve.preprocess import resize

        found = stated({"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": True})
        noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        library = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
        assert np.array_equal(resize(image, found.contract), library)

    def test_both_sides_are_stretched(self) -> None:
        found = stated(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 16}}
        )
        assert (found.contract.height, found.contract.width) == (24, 16)
        assert (found.contract.resize, found.crop, found.alike) == ("stretch", None, True)

    def test_small_convnexts_are_cut_from_a_larger_picture(self) -> None:
        found = stated(
            {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 224},
                "crop_pct": 0.875,
            }
        )
        assert (found.contract.height, found.seen) == (256, (224, 224))

    def test_without_rescaling_or_normalising_pixels_stay(self) -> None:
        found = stated(
            {"size": [16, 16], "do_rescale": False, "do_normalize": False, "image_mean": [9, 9, 9]}
        )
        assert (found.scale, found.mean, found.std) == (1.0, (0.0,) * 3, (1.0,) * 3)

    @pytest.mark.parametrize(
        ("config", "sentence"),
        [
            ({"do_resize": False}, "resizes nothing"),
            ({"do_pad": True, "size": [16, 16]}, "pads pictures after resizing"),
            ({"resample": 9, "size": [16, 16]}, "Pillow's filter 9; known are 0 \\(nearest\\)"),
            ({"size": {"longest_edge": 100}}, "leaves pictures of many sizes or is unknown"),
            ({"size": {"shortest_edge": 32}}, "shorter side to 32 and then cuts nothing"),
            ({"size": [16, 16], "image_mean": [0.5]}, "a mean of 1 channels; RGB has 3"),
        ],
    )
    def test_what_cannot_be_repeated_is_refused(
        self, config: dict[str, object], sentence: str
    ) -> None:
        with pytest.raises(ConfigError, match=sentence):
            stated(config)

    def test_a_size_does_not_go_with_a_centre(self) -> None:
        config = {"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": True}
        with pytest.raises(ConfigError, match="--size does not go with the centre crop"):
            stated(config, size=(20, 20))


def test_a_folder_that_says_nothing_of_pictures_is_no_vision_folder(tmp_path: Path) -> None:
    assert is_vision(save_vit(tmp_path / "vit"))
    write_json(tmp_path / "config.json", {})
    assert not is_vision(tmp_path)
