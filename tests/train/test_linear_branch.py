"""Half of an embedding is the network's, half a linear projection of the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinserve.errors import ConfigError
from twinserve.export.session import GraphSession
from twinserve.export.to_onnx import to_onnx
from twinserve.train.build import build
from twinserve.train.config import TrainConfig, load_config
from twinserve.train.evaluate import embed
from twinserve.train.linear_branch import WithLinearBranch
from twinserve.train.material import image_contract
from twinserve.train.twins import ImageTwin

CONFIG = TrainConfig(image_size=64, width=8, dimension=12, linear_branch=True)


def twin() -> ImageTwin:
    torch.manual_seed(0)
    built = build(CONFIG, image_contract(CONFIG))
    assert isinstance(built, ImageTwin)
    return built.eval()


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 1), dtype=np.uint8)


def test_both_halves_weigh_alike_in_a_cosine() -> None:
    built = twin()
    assert isinstance(built.body, WithLinearBranch)
    found = embed(built, pixels(5))
    assert found.shape == (5, built.dimension) == (5, 12)
    for half in (found[:, :6], found[:, 6:]):
        assert np.linalg.norm(half, axis=1) == pytest.approx(np.full(5, 0.5**0.5), abs=1e-5)


def test_the_linear_half_takes_no_notice_of_a_picture_s_light() -> None:
    built = twin()
    dark = pixels(3) // 4 + 20
    light = dark * 2 + 10
    np.testing.assert_allclose(
        embed(built, dark)[:, 6:], embed(built, light)[:, 6:], rtol=0, atol=5e-3
    )


def test_it_is_exported_and_built_again_as_it_was() -> None:
    built = twin()
    again = build(CONFIG, image_contract(CONFIG))
    again.load_state_dict(built.state_dict())
    np.testing.assert_array_equal(embed(again, pixels(3)), embed(built, pixels(3)))
    session = GraphSession(to_onnx(built), image_contract(CONFIG))
    for count in (1, 3):
        np.testing.assert_allclose(
            session(pixels(count)), embed(built, pixels(count)), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["twin=mlp"], "beside a network of pictures that begins at random, and twin is 'mlp'"),
        (["twin=resnet18", "weights=w.pth"], "weights is 'w.pth'"),
        (["dimension=63"], "dimension is 63; set an even one"),
    ],
)
def test_it_is_refused_where_it_cannot_stand(settings: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(None, ["linear_branch=true", *settings])
