"""Whether data shares items with the training set is told from the manifest's few kB alone."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest

from twinserve.errors import DataError, ManifestError
from twinserve.export import overlap
from twinserve.export.overlap import KEY, Sketch, check, item_digests, measure, sketches
from twinserve.train.data import Labelled


@functools.cache
def labelled(first_class: int, classes: int, items: int = 10) -> Labelled:
    """Classes by number: equal numbers hold equal rows, whatever the classes are called."""
    rows = [
        np.random.default_rng([label, item]).integers(0, 256, 16, dtype=np.uint8)
        for label in range(first_class, first_class + classes)
        for item in range(items)
    ]
    return Labelled(
        rows=np.stack(rows),
        labels=np.repeat(np.arange(classes), items),
        class_names=tuple(f"c{first_class}-{number}" for number in range(classes)),
        names=tuple(str(number) for number in range(classes * items)),
    )


def training(of: Labelled) -> dict[str, object]:
    return {KEY: json.loads(json.dumps(sketches(of)))}


def test_unseen_classes_pass() -> None:
    check(training(labelled(0, 20)), labelled(20, 10))
    found = measure(training(labelled(0, 20)), labelled(20, 10))
    assert found is not None
    assert (found.shared, found.classes, found.share) == (0, 0, 0.0)


def test_the_training_classes_themselves_are_refused_with_the_share() -> None:
    with pytest.raises(
        DataError, match=r"overlaps .*: 50 of its 100 items \(50.0%\), and 5 of its classes"
    ) as caught:
        check(training(labelled(0, 20)), labelled(15, 10))
    assert caught.value.metadata == {"shared_items": "50", "items": "100", "shared_classes": "5"}


def test_one_shared_class_among_hundreds_is_refused_under_any_name_and_order() -> None:
    unseen = labelled(100, 199)
    shared = labelled(7, 1)
    order = np.random.default_rng(0).permutation(2000)
    mixed = Labelled(
        rows=np.concatenate([unseen.rows, shared.rows])[order],
        labels=np.concatenate([unseen.labels, np.full(10, 199)])[order],
        class_names=(*unseen.class_names, "another name"),
        names=tuple(map(str, order)),
    )
    with pytest.raises(DataError, match=r"10 of its 2000 items \(0.5%\), and 1 of its classes"):
        check(training(labelled(0, 20)), mixed)


def test_most_of_a_training_class_is_that_class_though_others_stand_beside() -> None:
    unseen, shared = labelled(100, 199), labelled(7, 1)
    mixed = Labelled(
        rows=np.concatenate([unseen.rows, shared.rows[:7], labelled(400, 1).rows[:3]]),
        labels=np.concatenate([unseen.labels, np.full(10, 199)]),
        class_names=(*unseen.class_names, "another name"),
        names=tuple(map(str, range(2000))),
    )
    with pytest.raises(DataError, match=r"7 of its 2000 items \(0.4%\), and 1 of its classes"):
        check(training(labelled(0, 20)), mixed)


def test_a_small_training_set_is_told_of_every_item() -> None:
    found = measure(training(labelled(0, 1)), labelled(0, 40))
    assert found is not None
    assert (found.items, found.judged, found.shared) == (400, 400, 10)


def test_the_odd_item_that_stands_in_both_is_no_overlap() -> None:
    unseen = labelled(20, 20)
    rows = np.array(unseen.rows)
    rows[[3, 77]] = labelled(0, 1).rows[:2]
    check(training(labelled(0, 20)), overlap_of(unseen, rows))
    rows[:30:2] = labelled(0, 2).rows[:15]
    with pytest.raises(DataError, match="items"):
        check(training(labelled(0, 20)), overlap_of(unseen, rows))


def test_of_a_large_training_set_the_share_is_estimated() -> None:
    large = labelled(0, 900)  # 9,000 items, four times the sketch
    kept = training(large)
    found = measure(kept, labelled(700, 400))  # half of it was trained on
    assert found is not None
    assert 0 < found.judged < found.items == 4000
    assert found.share == pytest.approx(0.5, abs=0.06)
    with pytest.raises(DataError, match=r"about \d+ of its 4000 items .* by a sample of \d+"):
        check(kept, labelled(700, 400))
    check(kept, labelled(900, 400))


def test_whole_classes_of_a_large_training_set_are_told_by_their_own_digests() -> None:
    # Of four items to a class one is in the sketch, too little to tell the class by.
    found = measure(training(labelled(0, 2000, 4)), labelled(1980, 300, 4))
    assert found is not None
    assert found.classes == 20
    assert found.judged < found.items / 2


def test_texts_are_told_by_their_tokens() -> None:
    rows = [np.arange(length) for length in range(3, 23)]
    texts = Labelled(rows, np.arange(20) // 2, tuple("abcdefghij"), tuple(map(str, range(20))))
    with pytest.raises(DataError, match="20 of its 20 items"):
        check(training(texts), texts)


def test_a_twin_that_was_not_trained_here_has_nothing_to_be_held_against() -> None:
    assert measure({}, labelled(0, 2)) is None
    check({}, labelled(0, 2))


def test_the_sketch_is_small_and_shows_no_more_than_digests() -> None:
    text = json.dumps(sketches(labelled(0, 900)))
    assert len(text) < 40_000
    assert set(json.loads(text)["items"]) == {"count", "smallest"}
    assert "c0-1" not in text
    kept = Sketch.of(item_digests(labelled(0, 900)))
    assert (len(kept.smallest), kept.count) == (overlap.SIZE, 9000)
    again = Sketch.from_dict(kept.to_dict())
    np.testing.assert_array_equal(again.smallest, kept.smallest)
    assert np.all(np.diff(again.smallest.astype(object)) > 0)


@pytest.mark.parametrize(
    "damaged",
    [
        7,
        {},
        {"items": {}, "classes": {}},
        {"items": {"smallest": "%%", "count": 1}, "classes": {"smallest": "", "count": 0}},
        {"items": {"smallest": "AAAA", "count": 1}, "classes": {"smallest": "", "count": 0}},
        {"items": {"smallest": "", "count": 5}, "classes": {"smallest": "", "count": 0}},
    ],
)
def test_a_damaged_sketch_is_refused(damaged: object) -> None:
    with pytest.raises(ManifestError, match=re.escape(f"training.{KEY} is no sketch")):
        measure({KEY: damaged}, labelled(0, 2))


def overlap_of(like: Labelled, rows: np.ndarray) -> Labelled:
    return Labelled(rows, like.labels, like.class_names, like.names)
