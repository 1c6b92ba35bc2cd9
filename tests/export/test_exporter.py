"""From a run to one file, end to end: what is in it, what is not, and when there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import twinserve
from tests.export.conftest import CONTRACT, draw_classes
from twinserve.calibration import calibrate, pair_distances
from twinserve.decision import Rule, limit
from twinserve.errors import ConfigError, DataError, GateFailed
from twinserve.export import overlap
from twinserve.export.exporter import export, export_precisions
from twinserve.export.inspect import describe
from twinserve.export.session import GraphSession, embed_all
from twinserve.export.to_onnx import to_onnx, weights_digest
from twinserve.manifest import (
    Manifest,
    read,
    read_graph_digest,
    space_id,
)
from twinserve.train import checkpoint
from twinserve.train.evaluate import embed, evaluate
from twinserve.train.readers import load_images
from twinserve.train.twins import Twin

IN_ANOTHER_PROCESS = """
import sys
from twinserve.export.exporter import export
export(sys.argv[1], sys.argv[2])
"""


@dataclasses.dataclass(frozen=True)
class Exported:
    path: Path
    manifest: Manifest
    graph: bytes

    def again(self, _: Twin) -> bytes:
        """The same graph without the seconds that the exporter takes."""
        return self.graph


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("out") / "letters.onnx"
    kept: list[bytes] = []

    def graph(twin: Twin) -> bytes:
        kept.append(to_onnx(twin))
        return kept[0]

    manifest = export(run_dir, path, graph=graph)
    return Exported(path, manifest, kept[0])


def test_the_file_holds_the_manifest_that_is_returned(exported: Exported) -> None:
    assert read(exported.path) == exported.manifest
    assert read_graph_digest(exported.path) == exported.manifest.graph_digest
    onnx.checker.check_model(onnx.load(exported.path))


def test_the_served_embeddings_are_those_of_the_trained_twin(
    exported: Exported, run_dir: Path
) -> None:
    run = checkpoint.load(run_dir)
    pixels = run.part("report").rows
    served = embed_all(GraphSession(exported.path.read_bytes(), CONTRACT), pixels)
    np.testing.assert_allclose(served, embed(run.twin, pixels), rtol=0, atol=1e-5)


def test_the_manifest_says_what_the_twin_is(exported: Exported, run_dir: Path) -> None:
    twin = checkpoint.load(run_dir).twin
    found = exported.manifest
    assert (found.name, found.modality, found.precision) == ("letters", "image", "fp32")
    assert (found.input, found.dimension) == (twin.contract, twin.dimension)
    assert (found.metric, found.normalized) == (twin.metric, twin.normalized)
    weights = weights_digest(twin)
    assert found.version == weights[:12]
    assert found.space_id == space_id(weights, twin.contract, twin.dimension, twin.normalized)


def test_the_thresholds_come_from_the_calibrate_classes_through_onnxruntime(
    exported: Exported, run_dir: Path
) -> None:
    images = checkpoint.load(run_dir).part("calibrate")
    embeddings = embed_all(GraphSession(exported.path.read_bytes(), CONTRACT), images.rows)
    found = exported.manifest.calibration(12)
    assert found is not None
    pairs = pair_distances(embeddings, images.labels, exported.manifest.metric)
    again = calibrate(
        pairs, precision="fp32", dimension=12, metric=found.metric, data_digest=images.digest
    )
    assert found == again
    assert found.classes == len(images.class_names)
    stated = limit(Rule(false_accept_rate=0.1), found)
    assert stated.threshold is not None
    assert np.mean(pairs.impostor <= stated.threshold) <= 0.1


def test_the_results_come_from_the_report_classes(exported: Exported, run_dir: Path) -> None:
    run = checkpoint.load(run_dir)
    images = run.part("report")
    embeddings = embed_all(GraphSession(exported.path.read_bytes(), CONTRACT), images.rows)
    expected = evaluate(
        embeddings, images.labels, images.groups, run.twin.metric, ways=5, trials=100, seed=0
    ).to_dict()
    found = exported.manifest.training["report"]
    for key in ("equal_error_rate", "classes", "items", "one_shot"):
        assert found[key] == expected[key]
    assert found["equal_error_rate"] < 0.4, "the run learned something"
    pairs = pair_distances(embeddings, images.labels, run.twin.metric)
    for entry in found["at_the_thresholds"]:
        assert entry["false_accept_rate"] == np.mean(pairs.impostor <= entry["threshold"])


def test_the_gate_s_report_is_in_the_manifest(exported: Exported) -> None:
    vectors = exported.manifest.parity["vectors"]
    decisions = exported.manifest.parity["decisions"]
    assert set(vectors["max_abs_difference"]) == {"1", "2", "3", "7", "64"}
    assert max(vectors["max_abs_difference"].values()) <= 1e-5
    found = exported.manifest.calibration(12)
    assert found is not None
    assert decisions["pairs"] == found.genuine_pairs + found.impostor_pairs
    assert decisions["operating_points"] == len(found.points)
    assert decisions["disagreements"] == 0


def test_the_training_set_can_be_recognised_and_not_read(exported: Exported, run_dir: Path) -> None:
    run = checkpoint.load(run_dir)
    training = exported.manifest.training
    for part in ("calibrate", "report"):
        found = overlap.measure(training, run.part(part))
        assert found is not None
        assert (found.shared, found.classes) == (0, 0)
    train = run.part("train")
    with pytest.raises(DataError, match=rf"{len(train)} of its {len(train)} items \(100.0%\)"):
        overlap.check(exported.manifest, train)
    text = exported.manifest.to_json()
    assert not [name for name in run.splits.train if name in text]


def test_nothing_in_the_file_tells_of_the_machine(exported: Exported, run_dir: Path) -> None:
    content = exported.path.read_bytes()
    for trace in (run_dir, run_dir.parent / "data", Path.cwd(), Path.home()):
        assert str(trace).encode() not in content
    assert b'seconds": ' not in content.replace(b'"max_seconds": ', b"")


def test_the_same_run_gives_the_same_bytes_in_another_process(
    exported: Exported, run_dir: Path, tmp_path: Path
) -> None:
    root = Path(twinserve.__file__).resolve().parent.parent
    moved = tmp_path / "elsewhere"
    shutil.copytree(run_dir, moved)
    out = tmp_path / "letters.onnx"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", IN_ANOTHER_PROCESS, str(moved), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "54321"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (
        hashlib.sha256(out.read_bytes()).digest()
        == hashlib.sha256(exported.path.read_bytes()).digest()
    )


def test_name_and_version_may_be_given(exported: Exported, run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.fp32.onnx"
    stages: list[str] = []
    found = export(run_dir, out, "faces", "2.1", graph=exported.again, progress=stages.append)
    assert (found.name, found.version) == ("faces", "2.1")
    assert read(out) == found
    assert found.space_id == exported.manifest.space_id
    assert stages[0] == "reading the run"
    assert "passing the gate" in stages


def test_the_graph_of_another_twin_is_not_written(
    model: bytes, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "twin.onnx"
    out.write_bytes(b"the older one")
    with pytest.raises(GateFailed, match="max_abs_difference"):
        export(run_dir, out, graph=lambda _: model)
    assert out.read_bytes() == b"the older one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["twin.onnx"]


def test_a_graph_with_a_fixed_batch_is_not_written(
    exported: Exported, run_dir: Path, tmp_path: Path
) -> None:
    def fixed(_: Twin) -> bytes:
        model = onnx.load_from_string(exported.graph)
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 3
        return model.SerializeToString()

    with pytest.raises(GateFailed, match="the graph's inputs are"):
        export(run_dir, tmp_path / "twin.onnx", graph=fixed)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_breaks_above_some_batch_is_not_written(
    exported: Exported, run_dir: Path, tmp_path: Path
) -> None:
    def breaks_at_64(_: Twin) -> bytes:
        """Says that its batch is open, and multiplies by a column of 64 zeros."""
        model = onnx.load_from_string(exported.graph)
        last = model.graph.node[-1]
        last.output[0] = "before"
        column = np.ones((64, 1), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(column, "column"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["before", "column"], ["embedding"]))
        return model.SerializeToString()

    with pytest.raises(GateFailed, match=r"a batch of (1|2) "):
        export(run_dir, tmp_path / "twin.onnx", graph=breaks_at_64)
    assert list(tmp_path.iterdir()) == []


def test_other_precisions_are_files_of_their_own_in_the_same_space(
    exported: Exported, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "letters.onnx"
    outcome = export_precisions(
        run_dir, out, precisions=("fp32", "fp16", "int8"), graph=exported.again
    )
    # So small and so shortly trained a twin may be one that int8 cannot repeat.
    written = {twin.precision: twin.manifest for twin in outcome.twins}
    assert {"fp32", "fp16"} <= set(written)
    assert set(written) | set(outcome.refused) == {"fp32", "fp16", "int8"}
    names = {"fp32": "letters.onnx", "fp16": "letters.fp16.onnx", "int8": "letters.int8.onnx"}
    assert {entry.name for entry in tmp_path.iterdir()} == {names[key] for key in written}
    assert out.read_bytes() == exported.path.read_bytes()
    for precision, manifest in written.items():
        assert read(tmp_path / names[precision]) == manifest
        assert manifest.space_id == exported.manifest.space_id
        assert (manifest.name, manifest.version) == ("letters", exported.manifest.version)
        assert manifest.precision == precision
        assert {entry.precision for entry in manifest.calibrations} == {precision}
        assert manifest.calibration(12) is not None
    assert written["fp16"].graph_digest != exported.manifest.graph_digest


def test_a_bad_name_version_or_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    nowhere = tmp_path / "no run"
    with pytest.raises(ConfigError, match=r"name is 'my twin'.*give --name"):
        export(nowhere, tmp_path / "my twin.onnx")
    with pytest.raises(ConfigError, match="version is 'a/b'"):
        export(nowhere, tmp_path / "twin.onnx", version="a/b")
    with pytest.raises(ConfigError, match="no folder"):
        export(nowhere, tmp_path / "missing" / "twin.onnx")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no checkpoint.pt"):
        export(tmp_path, tmp_path / "twin.onnx")


def test_data_that_changed_since_the_training_is_refused(run_dir: Path, tmp_path: Path) -> None:
    run = checkpoint.load(run_dir)
    draw_classes(tmp_path / "data", seed=1)
    moved = dataclasses.replace(run.config, data=str(tmp_path / "data"))
    (tmp_path / "run").mkdir()
    checkpoint.save(
        tmp_path / "run",
        twin=run.twin,
        config=moved,
        splits=run.splits,
        results=run.results,
        data_digest=run.data_digest,
        step=run.step,
    )
    assert load_images(moved.data, CONTRACT).digest != run.data_digest
    with pytest.raises(DataError, match="has changed since"):
        export(tmp_path / "run", tmp_path / "twin.onnx")


def test_the_description_shows_what_the_manifest_holds(exported: Exported) -> None:
    text = describe(exported.manifest)
    assert text.startswith(f"letters@{exported.manifest.version}\n")
    for part in (
        exported.manifest.space_id,
        "16 x 16 pixels",
        "cosine distance",
        torch.__version__,
    ):
        assert part in text
    assert json.loads(exported.manifest.to_json())["training"]["report"]["one_shot"]["ways"] == 5
    assert "5-way one-shot" in text
