"""Exports of runs that were trained on pairs and triplets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.export.imports.conftest import graph_of, value
from tests.train import drawings, links, questions
from twinserve.export.exporter import export
from twinserve.export.inspect import describe
from twinserve.export.pairs import pairs_of
from twinserve.export.session import GraphSession, embed_all
from twinserve.feed import input_names
from twinserve.train import checkpoint
from twinserve.train.evaluate import embed
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.twins import Twin


def of_mlp(twin: Twin) -> bytes:
    """Return an MLP's graph, made by hand: torch takes seconds for it."""
    state = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    (name,) = input_names(twin.contract)
    steps = [
        ("Sub", [name, "mean"], {}),
        ("Div", ["0", "std"], {}),
        ("Gemm", ["1", "body.1.weight"], {"transB": 1}),
        (
            "BatchNormalization",
            ["2", *(f"body.2.{one}" for one in ("weight", "bias", "running_mean", "running_var"))],
            {},
        ),
        ("Relu", ["3"], {}),
        ("Gemm", ["4", "body.4.weight", "body.4.bias"], {"transB": 1}),
        ("LpNormalization", ["5"], {}),
    ]
    outputs = [*map(str, range(len(steps) - 1)), "embedding"]
    nodes = [
        helper.make_node(kind, inputs, [output], **more)
        for (kind, inputs, more), output in zip(steps, outputs, strict=True)
    ]
    used = {one for _, inputs, _ in steps for one in inputs}
    return graph_of(
        nodes,
        [value(name, TensorProto.FLOAT, "batch", *twin.mean.shape)],
        [value("embedding", TensorProto.FLOAT, "batch", twin.dimension)],
        {name: array for name, array in state.items() if name in used},
    ).SerializeToString()


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
        monkeypatch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return links.write(tmp_path_factory.mktemp("links"))


@pytest.mark.parametrize(
    ("table", "settings"),
    [("pairs", {"loss": "contrastive"}), ("triplets", {"loss": "triplet"})],
)
def test_thresholds_of_an_exported_run_are_of_its_calibrate_pairs(
    folder: Path, tmp_path: Path, table: str, settings: dict[str, object]
) -> None:
    run = links.trained(folder, table, tmp_path / "run", **settings)
    manifest = export(tmp_path / "run", tmp_path / "twin.onnx", graph=of_mlp)
    (calibration,) = manifest.calibrations
    part = run.linked_part("calibrate")
    pairs = part.pairs if isinstance(part, TripletData) else part
    assert calibration.evidence == "pairs"
    assert calibration.impostor_pairs == int((pairs.targets == 0).sum())
    assert manifest.training["report"]["at_the_thresholds"]
    assert manifest.training[table]["calibrate"] == len(part)
    assert str(folder) not in manifest.to_json()
    assert f"On the report {table}" in describe(manifest)


def test_an_exported_run_of_scores_gives_distances_and_says_so(
    folder: Path, tmp_path: Path
) -> None:
    links.trained(
        folder, "scored", tmp_path / "run", loss="cosine_mse", score_range="2..4", max_steps=2
    )
    said: list[str] = []
    manifest = export(tmp_path / "run", tmp_path / "twin.onnx", graph=of_mlp, progress=said.append)
    assert manifest.calibrations == ()
    assert any("without thresholds, since its pairs have scores" in one for one in said)
    assert "decides nothing" in describe(manifest)
    assert manifest.training["report"]["spearman"] == pytest.approx(
        checkpoint.load(tmp_path / "run").results["report"]["spearman"], abs=1e-6
    )


def test_pairs_with_items_that_were_trained_on_set_no_threshold(
    folder: Path, tmp_path: Path
) -> None:
    count = len((folder / "pairs.csv").read_text(encoding="utf-8").splitlines()) - 1
    parts = ["train", "calibrate", "report"]
    components = count // 20
    named = [parts[min(n // 20 * 3 // components, 2)] for n in range(count)]
    named[named.index("calibrate")] = "train"  # of two items, which 8 impostor pairs hold
    links.write_split(folder, tmp_path, named)
    settings = {"split_column": "set", "allow_shared_items": True, "max_steps": 1}
    links.trained(tmp_path, "pairs", tmp_path / "run", loss="contrastive", **settings)
    said: list[str] = []
    manifest = export(tmp_path / "run", tmp_path / "twin.onnx", graph=of_mlp, progress=said.append)
    assert manifest.calibrations[0].impostor_pairs == 15 * 16 - 8
    assert any("leaving 10 of 299 calibrate pairs out" in one for one in said)


def test_pictures_named_by_a_table_go_from_pairs_to_a_file_with_thresholds(
    tmp_path: Path,
) -> None:
    content = {
        f"{subject}-{n}.png": drawings.draw(subject, n) for subject in range(40) for n in range(3)
    }
    drawings.write_folder(tmp_path / "pictures", content)
    rows: list[tuple[str, ...]] = []
    for subject in range(0, 40, 2):  # two subjects hang together
        a, b = ([f"pictures/{one}-{n}.png" for n in range(3)] for one in (subject, subject + 1))
        rows += [(a[n], a[n - 1], "1") for n in range(3)]
        rows += [(one, other, "0") for one in a for other in b]
    questions.write_csv(tmp_path / "pairs.csv", rows, ("image1", "image2", "same"))
    small = {"twin": "conv4", "image_size": 16, "width": 4, "items": "", "calibrate_fraction": 0.4}
    run = links.trained(
        tmp_path,
        "pairs",
        tmp_path / "run",
        loss="contrastive",
        max_steps=4,
        evaluate_every=2,
        **small,
    )
    assert run.results["baseline"]["of"] == "pixels"
    manifest = export(tmp_path / "run", tmp_path / "twin.onnx")
    part = run.linked_part("calibrate")
    (calibration,) = manifest.calibrations
    assert calibration.impostor_pairs == int((part.targets == 0).sum())
    session = GraphSession((tmp_path / "twin.onnx").read_bytes(), run.twin.contract)
    np.testing.assert_allclose(
        embed_all(session, part.rows), embed(run.twin, part.rows), rtol=0, atol=1e-5
    )


def test_a_pair_calibrates_once_and_one_judged_both_ways_not_at_all() -> None:
    members = np.array([[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 3]])
    targets = np.array([1, 1, 0, 1, 0, 1], dtype=np.float32)
    pairs = pairs_of(PairData(np.eye(4, dtype=np.float32), tuple("abcd"), members, targets))
    assert pairs.first.tolist() == [0, 2]
    assert pairs.second.tolist() == [1, 3]
    assert pairs.same.tolist() == [True, False]
