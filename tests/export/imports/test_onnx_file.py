"""Opening a foreign ONNX file: what is refused, and with which sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import twins
from tests.export.imports.conftest import PROJECTION, vector_graph
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export.imports.onnx_file import (
    Original,
    check_batch,
    choose_output,
    open_file,
)
from twinserve.train.pretrained.settings import Settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "any.onnx"


def test_what_is_no_onnx_is_refused(path: Path) -> None:
    path.write_bytes(b"%PDF-1.7 and so on")
    with pytest.raises(ManifestError, match="not an ONNX"):
        open_file(path)


def test_half_a_file_is_refused(path: Path) -> None:
    whole = vector_graph().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match=r"ONNX.*again"):
        open_file(path)


def test_a_twin_is_sent_to_be_served(path: Path) -> None:
    path.write_bytes(twins.small_image_twin())
    with pytest.raises(ConfigError, match=r"is a twin already \(small\); serve it"):
        open_file(path)


def test_above_two_gigabytes_is_refused_before_it_is_read(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**31)  # a hole: takes no room, and reading it would take memory
    with pytest.raises(ManifestError, match=r"hold 2147483648 bytes, above the 2 GB"):
        open_file(path)


class TestWeightsBeside:
    def save(self, path: Path, location: str = "w.bin") -> None:
        onnx.save(
            vector_graph(), path, save_as_external_data=True, location="w.bin", size_threshold=0
        )
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        onnx.save(model, path)

    def test_they_count_for_the_limit(self, path: Path) -> None:
        self.save(path)
        os.truncate(path.parent / "w.bin", 2**31 - 1)
        with pytest.raises(ManifestError, match="above the 2 GB"):
            open_file(path)

    def test_they_lie_in_the_folder(self, path: Path) -> None:
        self.save(path, "../../etc/passwd")
        with pytest.raises(DataError, match="weights from outside its folder"):
            open_file(path)

    def test_they_are_whole(self, path: Path) -> None:
        self.save(path)
        os.truncate(path.parent / "w.bin", 8)
        with pytest.raises(DataError, match="cannot be read"):
            open_file(path)


class TestBatch:
    def test_a_fixed_one_is_refused(self, path: Path) -> None:
        onnx.save(vector_graph(batch=8), path)
        file = open_file(path)
        with pytest.raises(ConfigError, match=r"fixes its batch to 8.*--open-batch"):
            check_batch(file, Settings())
        check_batch(file, Settings(open_batch=True))

    def test_the_original_runs_at_its_own(self, path: Path) -> None:
        onnx.save(vector_graph(batch=8), path)
        file = open_file(path)
        rows = np.random.default_rng(0).normal(size=(19, 6)).astype(np.float32)
        found = Original(file, choose_output(file, Settings())).run({"vector": rows})
        np.testing.assert_allclose(found, rows @ PROJECTION, atol=1e-5)


def test_an_operation_that_onnxruntime_does_not_know(path: Path) -> None:
    model = vector_graph()
    model.graph.node[0].op_type = "Frobnicate"
    onnx.save(model, path)
    file = open_file(path)
    with pytest.raises(DataError, match=r"cannot load the graph.*Frobnicate"):
        Original(file, choose_output(file, Settings()))
