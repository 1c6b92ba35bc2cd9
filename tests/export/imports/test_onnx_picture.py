"""Graphs that take pixels: what is put in front of them, and behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.export.imports.conftest import KERNEL, picture_features, picture_graph, write_json
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError
from twinserve.export.imports import onnx_model
from twinserve.export.imports.source import Imported
from twinserve.export.session import GraphSession
from twinserve.train.pretrained.settings import Answers, Settings

PIXELS = np.random.default_rng(2).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
RAW = {"normalize": False, "metric": Metric.EUCLIDEAN}


def save(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "any.onnx")
    return folder / "any.onnx"


def read(path: Path, answers: Answers | None = None, **flags: object) -> Imported:
    answers = Answers() if answers is None else answers
    return onnx_model.import_file(path, (), Settings(**flags), answers)


def check(made: Imported, rows: np.ndarray, expected: np.ndarray) -> None:
    atol = 1e-5 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(GraphSession(made.graph, made.contract)(rows), expected, atol=atol)
    np.testing.assert_allclose(made.source.embed(rows), expected, atol=atol)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_flags_say_how_pixels_are_normalised(tmp_path: Path, nhwc: bool, kind: int) -> None:
    path = save(tmp_path, picture_graph(nhwc=nhwc, kind=kind))
    made = read(path, scale=1 / 128, mean=(0.9, 1.0, 1.1), std=(0.5,), color_order="BGR", **RAW)
    check(made, PIXELS, picture_features((PIXELS / 128 - [0.9, 1.0, 1.1]) / 0.5))
    contract = made.contract
    assert (contract.height, contract.width, contract.color_order) == (16, 16, "BGR")
    assert made.origin["pixels"]["mean"] == [0.9, 1.0, 1.1]


def test_small_colour_pictures_are_guessed_to_lie_between_minus_one_and_one(
    tmp_path: Path,
) -> None:
    answers = Answers()
    made = read(save(tmp_path, picture_graph()), answers, **RAW)
    check(made, PIXELS, picture_features((PIXELS / 255 - 0.5) / 0.5))
    guessed = {answer.question: answer for answer in answers.given if answer.guessed}
    assert guessed["mean"].taken == "0.5 0.5 0.5"
    assert guessed["mean"].flag == "--mean"
    assert "usual for faces" in guessed["mean"].because


def test_a_graph_that_normalises_itself_gets_pixels_as_they_are(tmp_path: Path) -> None:
    answers = Answers()
    made = read(save(tmp_path, picture_graph(subtract=True)), answers, **RAW)
    check(made, PIXELS, picture_features(PIXELS / 127.5 - 1))
    (scale,) = (answer for answer in answers.given if answer.question == "scale")
    assert "begins with Sub and Div" in scale.because


def test_uint8_pixels_of_a_graph_are_the_twin_s(tmp_path: Path) -> None:
    made = read(save(tmp_path, picture_graph(nhwc=True, kind=TensorProto.UINT8)), **RAW)
    check(made, PIXELS, picture_features(PIXELS.astype(np.float64)))


def test_an_open_size_is_asked_for(tmp_path: Path) -> None:
    model = picture_graph()
    for axis, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        axis.dim_param = name
    path = save(tmp_path, model)
    with pytest.raises(ConfigError, match=r"leaves height and width open.*--size HEIGHTxWIDTH"):
        read(path)
    made = read(path, size=(16, 16), **RAW)
    check(made, PIXELS, picture_features((PIXELS / 255 - 0.5) / 0.5))


def test_a_size_that_the_graph_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the graph refuses pixels \[1, 3, 20, 20\]"):
        read(save(tmp_path, picture_graph()), size=(20, 20))


class TestPlaces:
    def maps(self) -> np.ndarray:
        blocks = (PIXELS / 127.5 - 1).reshape(5, 4, 4, 4, 4, 3)
        return np.einsum("nrycxk,okyx->nrco", blocks, KERNEL).reshape(5, 16, 5)

    @pytest.mark.parametrize(
        ("pooling", "by_hand"),
        [
            ("mean", lambda maps: maps.mean(axis=1)),
            ("max", lambda maps: maps.max(axis=1)),
            ("cls", lambda maps: maps[:, 0]),
        ],
    )
    def test_they_become_one_vector_on_request(
        self, tmp_path: Path, pooling: str, by_hand: object
    ) -> None:
        path = save(tmp_path, picture_graph(pooled=False))
        assert callable(by_hand)
        pooled = by_hand(self.maps())
        check(read(path, pooling=(pooling,), **RAW), PIXELS, pooled)
        unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        check(read(path, pooling=(pooling,)), PIXELS, unit)

    def test_they_are_not_pooled_without_it(self, tmp_path: Path) -> None:
        path = save(tmp_path, picture_graph(pooled=False))
        with pytest.raises(ConfigError, match=r"map gives a vector per place .*--pooling: cls, m"):
            read(path)
        with pytest.raises(ConfigError, match=r"--pooling is mean\+cls; of a graph's places"):
            read(path, pooling=("mean", "cls"))


class TestFixedBatch:
    def test_it_is_opened_on_request(self, tmp_path: Path) -> None:
        path = save(tmp_path, picture_graph(batch=2))
        with pytest.raises(ConfigError, match="fixes its batch to 2"):
            read(path)
        made = read(path, open_batch=True, **RAW)
        check(made, PIXELS, picture_features(PIXELS / 127.5 - 1))
        assert made.origin["batch_opened_from"] == 2


def test_a_folder_s_preprocessing_is_taken(tmp_path: Path) -> None:
    onnx.save(picture_graph(), tmp_path / "model.onnx")
    write_json(
        tmp_path / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 20, "width": 20},
            "crop_size": {"height": 16, "width": 16},
            "do_center_crop": True,
            "resample": 3,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
        },
    )
    graph = onnx_model.find_graph(tmp_path)
    assert graph is not None
    made = onnx_model.import_folder(tmp_path, graph, (), Settings(**RAW), Answers())
    rows = np.random.default_rng(3).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    centre = rows[:, 2:18, 2:18] / 255
    check(made, rows, picture_features((centre - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]))
    assert (made.contract.height, made.contract.resample) == (20, "bicubic")
    assert sorted(made.origin["files"]) == ["model.onnx", "preprocessor_config.json"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"mean": (0.5, 0.5)}, "--mean has 2 values, the model has 3"),
        ({"std": (0.0,)}, "scale and std must be above 0"),
        ({"color_order": "L"}, r"--color-order L has 1 channel\(s\), the model takes 3"),
        ({"color_order": "YUV"}, "--color-order is 'YUV'; known are"),
        ({"resize": "squash"}, "--resize is 'squash'; known are"),
        ({"modality": "sound"}, "--modality is 'sound'; known are image, text, tensor"),
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(save(tmp_path, picture_graph()), **flags)
