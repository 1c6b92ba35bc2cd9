"""A subject's distance as the mean of its nearest items: by the definition, exact and by graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.gallery.folders import Known, brute_force, new, one_gallery, settings, vector
from tests.server.gallery.test_graphs import settle
from twinserve.distance import Metric
from twinserve.errors import DeadlineExceeded, InvalidInput
from twinserve.server.gallery import Clause, Equals, Gallery, GalleryLimits

DIMENSION = 8
GRAPHS = GalleryLimits(exact_scan_below=100, segment_rows=256)


def subjects(count: int) -> dict[str, Known]:
    """Subjects of one to nine items each, and items that are their own."""
    rng = np.random.default_rng(11)
    known = {}
    for number in range(count):
        centre = rng.normal(size=DIMENSION)
        for item in range(number % 9 + 1):
            near = centre + rng.exponential(0.5) * rng.normal(size=DIMENSION)
            known[f"i{number}-{item}"] = Known(
                f"s{number}" if number % 10 else "", {"count": item % 3}, near.astype(np.float32)
            )
    return known


def enroll(gallery: Gallery, known: dict[str, Known]) -> None:
    items = [new(i, one.embedding, one.subject, one.metadata) for i, one in known.items()]
    gallery.enroll(items).result()


def probes(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(12).normal(size=(count, DIMENSION)).astype(np.float32)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("mean_of", [2, 5, 100])
def test_an_exact_search_answers_the_means_by_the_definition(
    quick_folder: Path, metric: Metric, mean_of: int
) -> None:
    known = subjects(120)
    few = Clause("count", Equals(1))
    with one_gallery(quick_folder, settings(dimension=DIMENSION, metric=metric)) as gallery:
        enroll(gallery, known)
        asked = probes(10)
        for wanted in (None, few):
            for limit in (None, 0.6 if metric is Metric.COSINE else 3.0):
                outcome = gallery.search(
                    asked, k=7, filter=wanted, max_distance=limit, mean_of=mean_of
                )
                for probe, hits in zip(asked, outcome.results, strict=True):
                    far = np.inf if limit is None else limit
                    truth = brute_force(known, probe, metric, 7, wanted, True, far, mean_of)
                    assert hits.exact
                    assert [(hit.item_id, hit.distance) for hit in hits.hits] == truth


@pytest.mark.parametrize("metric", list(Metric))
def test_the_graphs_find_the_nearest_means_and_state_them_exactly(
    quick_folder: Path, metric: Metric
) -> None:
    known = subjects(900)
    found = wrong = 0
    with one_gallery(quick_folder, settings(dimension=DIMENSION, metric=metric), GRAPHS) as gallery:
        enroll(gallery, known)
        settle(gallery, GRAPHS.segment_rows)
        asked = probes(30)
        for limit in (np.inf, 0.5 if metric is Metric.COSINE else 2.5):
            outcome = gallery.search(
                asked, k=5, mean_of=4, max_distance=None if limit == np.inf else limit
            )
            for probe, hits in zip(asked, outcome.results, strict=True):
                truth = brute_force(known, probe, metric, 10**6, None, True, limit, 4)
                said = [(hit.item_id, hit.distance) for hit in hits.hits]
                assert set(said) <= set(truth), "whatever is said is true"
                found += not hits.exact
                wrong += len(set(truth[:5]) - set(said))
    assert found > 20, "the graphs were never asked: the test lost its point"
    assert wrong <= 0.02 * 2 * 5 * len(asked)


def test_who_has_one_near_item_does_not_hide_whose_all_are_near(quick_folder: Path) -> None:
    """Of the nearest items all are of subjects that the means put last."""
    rng = np.random.default_rng(13)
    known = {}
    for number in range(200):
        near = rng.normal(size=DIMENSION)
        known[f"lure{number}-0"] = Known(f"lure{number}", {}, near.astype(np.float32) * 0.01)
        known[f"lure{number}-1"] = Known(f"lure{number}", {}, near.astype(np.float32) * 50)
    for number in range(3):
        for item in range(2):
            near = rng.normal(size=DIMENSION)
            known[f"true{number}-{item}"] = Known(f"true{number}", {}, near.astype(np.float32))
    for number in range(400):
        near = 20 * rng.normal(size=DIMENSION)
        known[f"far{number}"] = Known("", {}, near.astype(np.float32))
    with one_gallery(quick_folder, settings(dimension=DIMENSION), GRAPHS) as gallery:
        enroll(gallery, known)
        settle(gallery, GRAPHS.segment_rows)
        probe = np.zeros((1, DIMENSION), dtype=np.float32)
        (hits,) = gallery.search(probe, k=3, mean_of=2, ef=5).results
        assert {hit.subject for hit in hits.hits} == {"true0", "true1", "true2"}
        (hits,) = gallery.search(probe, k=3, mean_of=1, ef=5).results
        assert all(hit.subject.startswith("lure") for hit in hits.hits)


def test_equal_means_come_by_the_id_of_the_nearest_item(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll(
            [
                new("z", [1, 0, 0, 0], "one"),
                new("a", [3, 0, 0, 0], "one"),
                new("y", [2, 0, 0, 0], "two"),
                new("b", [0, 2, 0, 0], "two"),
                new("c", [2, 0, 0, 0]),
            ]
        ).result()
        (hits,) = gallery.search(np.zeros((1, 4), dtype=np.float32), k=5, mean_of=2).results
    assert [(hit.item_id, hit.distance) for hit in hits.hits] == [
        ("b", 2.0),
        ("c", 2.0),
        ("z", 2.0),
    ]


def test_a_mean_is_never_nearer_than_the_nearest_item(quick_folder: Path) -> None:
    """Else rounding could pass a threshold that the nearest item itself does not pass."""
    odd = [[0.1 + n * 1e-3, 0, 0, 0] for n in range(20)]
    with one_gallery(quick_folder, settings()) as gallery:
        items = [new(f"{s}-{n}", row, f"s{s}") for s, row in enumerate(odd) for n in range(s + 1)]
        gallery.enroll(items).result()
        probe = np.zeros((1, 4), dtype=np.float32)
        (alone,) = gallery.search(probe, k=20).results
        nearest = {hit.subject: hit.distance for hit in alone.hits}
        for mean_of in range(2, 12):
            (hits,) = gallery.search(probe, k=20, mean_of=mean_of).results
            for hit in hits.hits:
                assert hit.distance >= nearest[hit.subject]


def test_verification_measures_the_same_mean_as_a_search_and_names_the_nearest(
    quick_folder: Path,
) -> None:
    known = subjects(60)
    with one_gallery(quick_folder, settings(dimension=DIMENSION)) as gallery:
        enroll(gallery, known)
        (probe,) = probes(1)
        for mean_of in (1, 2, 3, 100):
            (hits,) = gallery.search(probe[None], k=100, mean_of=mean_of).results
            assert len(hits.hits) > 60
            for hit in hits.hits:
                verified = gallery.verify(hit.subject or hit.item_id, probe, mean_of)
                assert (verified.item_id, verified.distance) == (hit.item_id, hit.distance)
                assert verified.items_compared == hit.items


def test_a_mean_of_nothing_is_refused(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()
        with pytest.raises(InvalidInput, match="mean_of is 0"):
            gallery.search(np.zeros((1, 4), dtype=np.float32), k=1, mean_of=0)
        with pytest.raises(InvalidInput, match="mean_of is 0"):
            gallery.verify("a", vector(0, 0, 0, 0), 0)


def test_a_search_for_means_that_nobody_waits_for_ends(quick_folder: Path) -> None:
    calls: list[int] = []

    def stop_after(most: int) -> Callable[[], None]:
        def proceed() -> None:
            calls.append(1)
            if len(calls) > most:
                raise DeadlineExceeded("nobody waits any more")

        return proceed

    with one_gallery(quick_folder, settings(dimension=DIMENSION), GRAPHS) as gallery:
        enroll(gallery, subjects(200))
        settle(gallery, GRAPHS.segment_rows)
        with pytest.raises(DeadlineExceeded):
            gallery.search(probes(20), k=1, mean_of=2, proceed=stop_after(5))
    assert len(calls) == 6
