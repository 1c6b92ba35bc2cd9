"""A search asks between pieces of its work whether to go on, and answers the same when it may."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, one_gallery, settings
from tests.server.gallery.test_graphs import settle
from twinserve.distance import Metric
from twinserve.errors import DeadlineExceeded
from twinserve.server.gallery import Clause, Exists, GalleryLimits
from twinserve.server.gallery.search import (
    Candidates,
    Question,
    Scope,
    _judge,
    go_on,
    quick,
    rescore,
    search,
)
from twinserve.server.gallery.segments import Probes

PROBES = np.random.default_rng(4).standard_normal((40, 4)).astype(np.float32)
ITEMS = np.random.default_rng(5).standard_normal((400, 4)).astype(np.float32)


def stops_after(calls: int) -> tuple[Callable[[], None], list[int]]:
    made: list[int] = []

    def proceed() -> None:
        made.append(1)
        if len(made) > calls:
            raise DeadlineExceeded("nobody waits any more")

    return proceed, made


@pytest.mark.parametrize("exact", [True, False])
def test_a_search_that_nobody_waits_for_ends_at_its_next_piece(
    quick_folder: Path, exact: bool
) -> None:
    limits = GalleryLimits(exact_scan_below=10)
    with one_gallery(quick_folder, settings(), limits) as gallery:
        gallery.enroll([new(f"i{n}", vector) for n, vector in enumerate(ITEMS)]).result()
        whole = gallery.search(PROBES, k=3, exact=exact)
        proceed, made = stops_after(10_000)
        assert gallery.search(PROBES, k=3, exact=exact, proceed=proceed).results == whole.results
        assert len(made) > len(PROBES), "at least once a probe"
        for calls in (0, 1, 5, len(PROBES)):
            proceed, made = stops_after(calls)
            with pytest.raises(DeadlineExceeded):
                gallery.search(PROBES, k=3, exact=exact, proceed=proceed)
            assert len(made) == calls + 1, "nothing goes on behind it"


def test_a_segment_that_saw_far_does_not_end_the_search_for_another(quick_folder: Path) -> None:
    """Of a crowd of one subject the graph names no other at first, whatever lies elsewhere."""
    limits = GalleryLimits(exact_scan_below=50, segment_rows=1_024)
    rng = np.random.default_rng(6)
    crowd = 0.1 * rng.standard_normal((1_004, 4))
    behind = [[1.0 + n / 100, 0, 0, 0] for n in range(20)]
    far = 100 + rng.standard_normal((300, 4))
    with one_gallery(quick_folder, settings(), limits) as gallery:
        items = [new(f"c{n}", one, "crowd") for n, one in enumerate(crowd)]
        items += [new(f"b{n}", one, f"s{n}") for n, one in enumerate(behind)]
        gallery.enroll(items).result()
        gallery.enroll([new(f"f{n}", one) for n, one in enumerate(far)]).result()
        settle(gallery, len(far))
        probe = np.zeros((1, 4), dtype=np.float32)
        (hits,) = gallery.search(probe, k=5, max_distance=5.0).results
    assert [hit.subject for hit in hits.hits] == ["crowd", "s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", list(Metric))
def test_who_is_left_out_by_float32_is_surely_farther(
    quick_folder: Path, metric: Metric, seed: int
) -> None:
    """Units as wrong as they may be, in a crowd of vectors that float32 cannot tell apart."""
    rng = np.random.default_rng(seed)
    crowds = np.repeat(rng.standard_normal((12, 8)), 25, axis=0)
    vectors = crowds + 10.0 ** rng.uniform(-8, -1, (300, 1)) * rng.standard_normal((300, 8))
    items = [new(f"i{n}", one, f"s{n % 90}") for n, one in enumerate(vectors)]
    with one_gallery(
        quick_folder, settings(dimension=8, metric=metric), GalleryLimits()
    ) as gallery:
        gallery.enroll(items).result()
        gallery.remove(ids=[f"i{n}" for n in range(0, 300, 7)]).result()
        # The same vector in two items, which lie in one candidate's place.
        gallery.enroll([new("twin", vectors[1], "t"), new("i2", vectors[2], "moved")]).result()
        view = gallery.view
        probes = Probes(vectors[1::25].astype(np.float32) + np.float32(1e-4), metric)
        for k, by_subject, limit in itertools.product((1, 5, 40), (False, True), (None, 0.2)):
            question = Question(k, by_subject=by_subject, max_distance=limit)
            kept = view.rows.item_count
            enough = min(k, view.rows.subject_count if by_subject else kept)
            scope = Scope(view, question, None, enough, go_on)
            rows = np.broadcast_to(np.arange(view.rows.count), (len(probes), view.rows.count))
            labels = view.rows.label[: view.rows.count]
            exact = np.stack([rescore(view, probe, labels) for probe in probes.vectors])
            units = exact**2 if metric is Metric.EUCLIDEAN else exact
            longest = probes.extent[1] + float(np.sqrt(units.max()))
            errors = probes.error(longest)[:, None] * rng.uniform(-0.9, 0.9, units.shape)
            reached = np.full(len(probes), np.inf)
            candidates = Candidates(rows, (units + errors).astype(np.float32), reached)
            found = _judge(scope, probes, candidates)
            truth, *_ = search(view, probes, dataclasses.replace(question, exact=True), None, 10)
            assert found.starts.tolist() == truth.starts.tolist()
            assert found.rows.tolist() == truth.rows.tolist()
            assert found.distances.tolist() == truth.distances.tolist()


def test_only_a_search_of_a_few_milliseconds_is_quick(quick_folder: Path) -> None:
    limits = GalleryLimits(exact_scan_below=100, segment_rows=1_024)
    many = np.random.default_rng(8).standard_normal((2_000, 4))
    with one_gallery(quick_folder, settings(), limits) as gallery:
        gallery.enroll([new(f"i{n}", one) for n, one in enumerate(many)]).result()
        settle(gallery, 0)
        view = gallery.view
        assert quick(view, 16, 10, 64, 100)
        assert quick(view, 16, 10, 64, 10_000), "a scan of so few"
        assert not quick(view, 1_200, 10, 64, 10_000), "nine million products and sums"
        assert not quick(view, 16_000, 10, 64, 100)
        gallery.search(PROBES, k=3)  # has the strangers counted
        wanted = {"k": 3, "filter": None, "exact": False, "ef": None, "mean_of": 1}
        assert gallery.is_quick(16, **wanted)
        for more in ({"exact": True}, {"mean_of": 2}, {"filter": Clause("seen", Exists())}):
            assert not gallery.is_quick(16, **wanted | more)
        gallery.remove(ids=[f"i{n}" for n in range(1_200)]).result()
        assert not gallery.is_quick(16, **wanted), "strangers are to be counted anew"
        assert not quick(gallery.view, 16, 10, 64, 100), "dead ones have it widened"
