"""What the gallery benchmarks write, draw and count, and one small run of them as a whole."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gallery import data, messages
from benchmarks.gallery.matching import BREADTHS, narrowest
from benchmarks.gallery.rows import growth
from benchmarks.gallery.rows.growth import Point
from benchmarks.serving.report import Report
from twinserve.v1 import gallery_service_pb2 as pb


def test_a_request_written_by_hand_is_the_one_that_protobuf_reads(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((3, 200), dtype=np.float32)
    body = messages.enrol("faces", ["a", "b", "c" * 100], vectors, "space", [0, 7, 99])
    request = pb.EnrollRequest.FromString(body[5:])
    assert body[0] == 0
    assert int.from_bytes(body[1:5], "big") == len(body) - 5
    assert request.gallery == "faces"
    assert [one.item.id for one in request.items] == ["a", "b", "c" * 100]
    assert [one.item.metadata[messages.KEY].integer for one in request.items] == [0, 7, 99]
    assert request.space_id == "space"
    packed = np.frombuffer(request.embeddings, "<f4").reshape(3, 200)
    np.testing.assert_array_equal(packed, vectors)


def test_bodies_in_a_file_are_read_back_one_by_one(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    written = [messages.enrol("g", [str(i)], vectors[i][None], "s") for i in range(3)]
    read = messages.Bodies(messages.keep(tmp_path / "bodies", written))
    assert len(read) == 3
    assert [read[i] for i in range(3)] == written
    assert read[1:] == written[1:]


def test_what_a_search_found_is_read_in_order_and_what_is_missing_is_no_item() -> None:
    response = pb.SearchResponse()
    for item_id in ("7", "3"):
        response.results.add().hits.hits.add().item.id = item_id
    found = messages.found(b"\0" * 5 + response.SerializeToString())
    assert found[:, 0].tolist() == [7, 3]
    assert (found[:, 1:] == -1).all()
    response.results.add().error.message = "of another space"
    with pytest.raises(RuntimeError, match="of another space"):
        messages.found(b"\0" * 5 + response.SerializeToString())


def test_the_same_data_is_drawn_again_and_its_exact_answers_are_exact(tmp_path: Path) -> None:
    first = data.clustered(tmp_path / "a", 500, 16, 20)
    again = data.clustered(tmp_path / "b", 500, 16, 20)
    np.testing.assert_array_equal(first.items, again.items)
    np.testing.assert_array_equal(first.probes, again.probes)
    np.testing.assert_allclose(np.linalg.norm(first.items, axis=1), 1, atol=1e-6)
    distances = ((first.probes[:, None] - first.items[None]) ** 2).sum(axis=2)
    wanted = np.argsort(distances, axis=1)[:, :10]
    assert data.recall(first.truth, wanted) == 1
    assert str(first) == "clustered 500 x 16"


def test_exact_answers_do_not_depend_on_how_the_items_are_divided(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = rng.standard_normal((300, 8), dtype=np.float32)
    whole = data.nearest(items, items[:5])
    monkeypatch.setattr(data, "BLOCK", 64)
    np.testing.assert_array_equal(data.nearest(items, items[:5]), whole)
    assert whole[:, 0].tolist() != [-1] * 5


def test_recall_counts_the_true_neighbours_that_were_found_in_any_order() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert data.recall(np.array([[4, 3, 2, 1], [5, 6, 90, -1]]), truth) == 0.75


def test_real_embeddings_are_divided_into_probes_and_items_that_share_none(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = rng.standard_normal((200, 8), dtype=np.float32)
    np.save(tmp_path / "texts.npy", rows)
    made = data.real(tmp_path / "work", tmp_path / "texts.npy", probes=10)
    assert (made.count, len(made.probes), made.kind) == (190, 10, "texts")
    together = np.vstack([made.items, made.probes])
    np.testing.assert_allclose(
        np.sort(together[:, 0]), np.sort(rows[:, 0] / np.linalg.norm(rows, axis=1)), rtol=1e-5
    )


@pytest.mark.parametrize("target", [0.9, 0.99, 1.1])
def test_the_narrowest_search_that_reaches_a_recall_is_found_with_few_tries(target: float) -> None:
    asked: list[int] = []

    def recall(ef: int) -> float:
        asked.append(ef)
        return min(1.0, 0.9 + ef / 1000)

    found = narrowest(recall, target)
    reaching = [ef for ef in BREADTHS if recall(ef) >= target]
    assert found.ef == (reaching[0] if reaching else BREADTHS[-1])
    assert found.recall == pytest.approx(min(1.0, 0.9 + found.ef / 1000))
    assert len(asked) - len(BREADTHS) <= 6


def test_growth_compares_the_fewest_with_the_most_items_of_the_same_data() -> None:
    report = Report("2 cores", {})
    points = [
        Point("clustered", 128, 10_000, 0.99, (1.0,), (2.0,)),
        Point("clustered", 128, 1_000_000, 0.99, (3.0,), (4.0,)),
        Point("clustered", 128, 100_000, 0.99, (9.0,), (9.0,)),
        Point("texts", 384, 20_000, 0.99, (1.0,), (2.0,)),
    ]
    growth.measure(points, report)
    assert [(line.who, line.figures["times"]) for line in report.lines] == [
        ("hnswlib", "3.00 (3.00 to 3.00)"),
        ("ours, served", "2.00 (2.00 to 2.00)"),
    ]
    assert report.lines[1].aims[0].met


def test_a_small_run_fills_searches_and_reports_with_recall_beside_every_speed(
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnx")  # makes the twin
    from benchmarks.gallery.__main__ import run
    from benchmarks.gallery.stage import Setting

    small = data.clustered(tmp_path / "data", 600, 16, 40)
    setting = Setting(
        seconds=0.2, warm=0.05, turns=1, targets=(0.9,), flags=("--exact-below", "100"), rests=0.2
    )
    report = Report("a test", {})
    given = argparse.Namespace(work=tmp_path, out=tmp_path / "out.json", markdown=None)
    run([small], setting, {"calls", "memory"}, report, given)
    assert report.notes == []
    searched = [line for line in report.lines if line.table.startswith("Searching")]
    assert {line.who for line in searched} == {"hnswlib", "ours, served"}
    assert all(float(line.figures["recall"]) >= 0.9 for line in searched)
    assert Report.read(tmp_path / "out.json").lines == report.lines
