"""How strangers fare: the scan against brute force, and the promise against fresh strangers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.gallery.folders import Known, new, one_gallery, settings
from twinserve.distance import Metric, paired, pairwise
from twinserve.server.gallery import Gallery, GalleryLimits, impostors
from twinserve.server.gallery.impostors import Estimate, measure, sample

# Segments and blocks of a few rows, so that every path is walked at sizes a test can afford.
LIMITS = GalleryLimits(exact_scan_below=20, segment_rows=16)


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("COLUMNS", 16),
        ("CELLS", 64),
        ("PILOT_COLUMNS", 8),
        ("SAMPLE", 40),
        ("SAMPLE_IN_FLOAT64", 20),
        ("NEAR_SUBJECTS", 3),
    ):
        monkeypatch.setattr(impostors, name, value)


def by_subject(known: Mapping[str, Known], item_id: str, metric: Metric) -> list[tuple[float, str]]:
    """Every other subject of an item with its nearest distance, by the definition."""
    own = known[item_id].subject or item_id
    least: dict[str, float] = {}
    ids = list(known)
    probe = known[item_id].embedding[None]
    distances = paired(np.stack([known[i].embedding for i in ids]), probe, metric)
    for other, value in zip(ids, distances.tolist(), strict=True):
        subject = known[other].subject or other
        if subject != own:
            least[subject] = min(value, least.get(subject, np.inf))
    return sorted((value, subject) for subject, value in least.items())


def check(gallery: Gallery, known: Mapping[str, Known], metric: Metric) -> Estimate:
    """Hold an estimate of the gallery to brute force over all its probes."""
    view = gallery.view
    estimate = measure(view)
    assert estimate is not None
    found = estimate.nearest
    assert (found.items, found.subjects) == (
        len(known),
        len({one.subject or i for i, one in known.items()}),
    )
    live = view.rows.live_rows
    live = live[np.argsort(view.rows.subject[live], kind="stable")]
    most = impostors.SAMPLE if view.safe else impostors.SAMPLE_IN_FLOAT64
    probes = live[sample(view.rows.subject[live], live, most)]
    assert len(probes) == len(found.subject) == min(most, len(known))
    within = []
    for number, row in enumerate(probes):
        others = by_subject(known, view.rows.id_of(int(row)), metric)
        for rank in (0, 1):
            if rank < len(others):
                assert found.distance[number, rank] == others[rank][0]
                tied = {name for value, name in others if value == others[rank][0]}
                assert view.rows.subjects.name_of(int(found.other[number, rank])) in tied
            else:
                assert found.distance[number, rank] == np.inf
                assert found.other[number, rank] == -1
        within.append([value for value, _ in others])
    sizes = Counter(one.subject or i for i, one in known.items())
    cut = max(sizes.values()) > impostors.COLUMNS  # such a subject may be counted twice
    sizes = Counter(one.subject or i for i, one in known.items())
    cut = max(sizes.values()) > impostors.COLUMNS  # such a subject may be counted twice
    # To a step of the ladder and never less where they are counted, about right beyond.
    for quantile in (0.0, 0.05, 0.3, 0.8):
        # A step of float32 above a distance, since they are counted in float32.
        threshold = float(np.quantile(found.distance[:, 0], quantile)) * 1.00001 + 1e-6
        counted = float(np.mean([np.sum(np.array(values) <= threshold) for values in within]))
        stated = estimate.subjects_within(threshold)
        if counted > 2:
            assert 0.6 * counted < stated < 1.6 * counted
        else:
            assert stated >= counted * (1 - 1e-6) - 1e-9
            assert cut or stated <= counted * 1.25 + 8 / len(within)
    return estimate


@pytest.mark.parametrize(
    ("seed", "metric"), [(1, Metric.EUCLIDEAN), (2, Metric.COSINE), (3, Metric.COSINE)]
)
def test_the_nearest_other_subjects_are_exact_whatever_was_enrolled_moved_and_removed(
    quick_folder: Path, tiny_blocks: None, seed: int, metric: Metric
) -> None:
    rng = np.random.default_rng(seed)
    known: dict[str, Known] = {}
    with one_gallery(quick_folder, settings(dimension=6, metric=metric), LIMITS) as gallery:
        for _ in range(25):
            batch = {f"i{rng.integers(90):02}" for _ in range(12)}
            items = []
            for item_id in sorted(batch):
                subject = "" if rng.random() < 0.2 else f"s{rng.integers(25)}"
                coarse = rng.random() < 0.3  # so that vectors collide, across subjects too
                vector = rng.integers(1, 4, 6) if coarse else rng.normal(size=6)
                fresh = vector.astype(np.float32)
                moved = item_id in known and rng.random() < 0.3
                embedding = known[item_id].embedding if moved else fresh
                known[item_id] = Known(subject, {}, embedding)
                items.append(new(item_id, None if moved else fresh, subject))
            gallery.enroll(items).result()
            gone = [item_id for item_id in known if rng.random() < 0.04]
            gallery.remove(ids=gone).result()
            for item_id in gone:
                del known[item_id]
            check(gallery, known, metric)


def test_a_subject_with_thousands_of_items_and_one_with_few_are_both_exact(
    quick_folder: Path, tiny_blocks: None
) -> None:
    rng = np.random.default_rng(5)
    with one_gallery(quick_folder, settings(dimension=6), LIMITS) as gallery:
        for subjects, size in ((2, 70), (3, 50)):
            known = {
                f"s{s}-{i}": Known(f"s{s}", {}, rng.normal(size=6).astype(np.float32))
                for s in range(subjects)
                for i in range(size if s else 5)
            }
            gallery.enroll([new(i, k.embedding, k.subject) for i, k in known.items()]).result()
            check(gallery, known, Metric.EUCLIDEAN)
            gallery.remove(ids=list(known)).result()


def test_vectors_that_float32_cannot_rank_are_measured_in_float64(
    quick_folder: Path, tiny_blocks: None
) -> None:
    rng = np.random.default_rng(6)
    known = {f"i{n}": Known("", {}, rng.normal(size=6).astype(np.float32)) for n in range(30)}
    known["huge"] = Known("", {}, np.full(6, 1e25, dtype=np.float32))
    known["larger"] = Known("", {}, np.full(6, 1.5e25, dtype=np.float32))
    with one_gallery(quick_folder, settings(dimension=6), LIMITS) as gallery:
        gallery.enroll([new(i, k.embedding) for i, k in known.items()]).result()
        assert not gallery.view.safe
        check(gallery, known, Metric.EUCLIDEAN)


def test_a_vector_enrolled_under_two_subjects_is_met_at_distance_zero(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll(
            [
                new("a", [1, 2, 3, 4], "anna"),
                new("b", [1, 2, 3, 4], "bert"),
                new("c", [9, 9, 9, 9], "cleo"),
            ]
        ).result()
        estimate = measure(gallery.view)
    assert estimate is not None
    assert sorted(estimate.nearest.distance[:, 0].tolist())[:2] == [0.0, 0.0]
    assert estimate.subjects_within(0.0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("subjects", [0, 1])
def test_without_two_subjects_nobody_can_be_taken_for_anybody_else(
    quick_folder: Path, subjects: int
) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        if subjects:
            gallery.enroll([new(f"a{n}", [n, 0, 0, 0], "anna") for n in range(4)]).result()
        estimate = measure(gallery.view)
        assert estimate is not None
        assert len(estimate.nearest.subject) == 0
        assert estimate.subjects_within(1e9) == 0.0
        outcome = gallery.search(np.zeros((1, 4), dtype=np.float32), k=1)
        assert outcome.strangers is None


def test_the_sample_takes_one_item_of_each_subject_before_second_ones() -> None:
    codes = np.repeat(np.arange(300, dtype=np.int32), np.tile([1, 5], 150))
    rows = np.arange(len(codes))
    some = codes[sample(codes, rows, 200)]
    assert len(np.unique(some)) == 200
    more = codes[sample(codes, rows, 400)]
    counts = np.bincount(more, minlength=300)
    assert counts.min() == 1
    assert counts.max() == 2
    assert counts.sum() == 400
    assert np.array_equal(sample(codes, rows, 5_000), rows)
    # Of subjects that all fit, none is preferred: the drawn ones come from everywhere.
    assert 60 < np.count_nonzero(some < 150) < 140


def test_it_stops_where_its_caller_says_so_and_rests_after_every_piece(
    quick_folder: Path, tiny_blocks: None
) -> None:
    rng = np.random.default_rng(7)
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll([new(f"i{n}", rng.normal(size=4)) for n in range(100)]).result()
        took: list[float] = []
        whole = measure(gallery.view, lambda seconds: took.append(seconds) is None)
        assert whole is not None
        assert len(took) > 40  # 40 probes against 100 rows, at most 64 distances at a time
        assert all(seconds >= 0 for seconds in took)
        for last in (1, 5, len(took)):
            pieces = iter(range(1, 1000))
            assert measure(gallery.view, lambda _, at=last, n=pieces: next(n) < at) is None


def population(
    rng: np.random.Generator, subjects: int, items: int, families: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Subjects of related families: float32 [subjects, items, d]; not all strangers are alike."""
    centres = families[rng.integers(len(families), size=subjects)]
    centres = centres + rng.normal(size=centres.shape)
    drawn = centres[:, None, :] + 0.3 * rng.normal(size=(subjects, items, centres.shape[1]))
    return drawn.astype(np.float32)


def test_fresh_strangers_are_let_in_as_seldom_as_promised(quick_folder: Path) -> None:
    rng = np.random.default_rng(8)
    families = 2.0 * rng.normal(size=(40, 12))
    realised, uppers = [], []
    with one_gallery(quick_folder, settings(dimension=12)) as gallery:
        for number in range(15):
            people = population(rng, 300, 2, families)
            gallery.enroll(
                [
                    new(f"{number}-{s}-{i}", people[s, i], f"s{s}")
                    for s in range(len(people))
                    for i in range(2)
                ]
            ).result()
            strangers = population(rng, 2000, 1, families)[:, 0]
            outcome = gallery.search(strangers[:1], k=1)
            assert outcome.strangers is not None
            point = outcome.strangers.at_rate(0.05)
            assert point is not None
            assert point.rate <= 0.05
            nearest = pairwise(strangers, people.reshape(-1, 12), Metric.EUCLIDEAN).min(axis=1)
            realised.append(float(np.mean(nearest <= point.threshold)))
            uppers.append(point.rate_upper)
            gallery.remove(ids=[f"{number}-{s}-{i}" for s in range(300) for i in range(2)]).result()
    kept = np.array(realised) <= np.array(uppers)
    assert kept.mean() >= 0.9, list(zip(realised, uppers, strict=True))
    assert 0.03 < np.mean(realised) < 0.065
    assert np.median(uppers) < 0.15  # a bound that anything satisfies would promise nothing
