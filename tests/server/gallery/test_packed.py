"""Items enrolled as columns against the same items one by one: same answers, files and finds."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.gallery.folders import SMALL, one_gallery, opened, settings
from twinserve.distance import Metric
from twinserve.errors import GalleryFull, InvalidInput, TwinserveError, ZeroVector
from twinserve.server.gallery import (
    Enrolled,
    EnrollOutcome,
    Galleries,
    Gallery,
    MetadataValue,
    NewItem,
    PackedItems,
    gallery,
    memory,
    transactions,
)

Vectors = NDArray[np.float32]
COLUMNS = "number, id, subject, metadata, digest, created = updated"


def vectors(count: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def packed(
    ids: Sequence[str],
    embeddings: Vectors,
    subjects: Sequence[str] | None = None,
    metadata: Sequence[dict[str, MetadataValue]] | None = None,
) -> PackedItems:
    return PackedItems(ids, subjects or [""] * len(ids), metadata or [{}] * len(ids), embeddings)


def enrolled(gallery: Gallery, items: Sequence[NewItem], **more: Any) -> list[object]:
    """What is said of each item; of what failed as a whole, only that."""
    try:
        outcome = gallery.enroll(items, **more).result()
    except TwinserveError as error:
        return [said(error)]
    return [said(one) for one in outcome.results]


def said(result: Enrolled | TwinserveError) -> object:
    if isinstance(result, TwinserveError):
        return type(result), result.message, result.field
    return result


def kept(gallery: Gallery) -> list[object]:
    """All rows of the store but their times, on which the checksums of items depend."""
    with sqlite3.connect(gallery.store.path) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                f"SELECT {COLUMNS} FROM items ORDER BY number",
                "SELECT * FROM vectors ORDER BY number",
                "SELECT * FROM changes ORDER BY 1, 2",
                "SELECT * FROM state WHERE key NOT LIKE 'snapshot%' ORDER BY key",
            )
        ]


def found(gallery: Gallery, probes: Vectors) -> list[object]:
    """What searches find, by item and by subject."""
    whole = [
        (hit.item_id, hit.subject, hit.distance, hit.items)
        for by_subject in (False, True)
        for hits in gallery.search(probes, k=300, by_subject=by_subject, exact=True).results
        for hit in hits.hits
    ]
    status = gallery.status()
    return [*whole, status.item_count, status.subject_count]


class Both:
    """Two galleries that are given the same, one of them as columns."""

    def __init__(self, galleries: Galleries, wanted: dict[str, Any]) -> None:
        self.names = ("columns", "rows")
        for name in self.names:
            galleries.create(settings(name, **wanted))
        self.columns, self.rows = (galleries.get(name) for name in self.names)

    def check(self, items: PackedItems, **more: Any) -> list[object]:
        """Enrol them in both; what was said, but for the galleries' names."""
        answers = enrolled(self.columns, items, **more)
        apart = enrolled(self.rows, list(items), **more)
        assert str(answers).replace("columns", "") == str(apart).replace("rows", "")
        assert kept(self.columns) == kept(self.rows)
        probes = vectors(3, seed=99)
        assert found(self.columns, probes) == found(self.rows, probes)
        return answers


@contextlib.contextmanager
def both(folder: Path, **wanted: Any) -> Iterator[Both]:
    with opened(folder, SMALL) as galleries:
        yield Both(galleries, wanted)


def test_columns_enrol_what_rows_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    facts: list[dict[str, MetadataValue]] = [{}, {"colour": "grün"}, {"count": 3, "other": "ü"}]
    with both(tmp_path) as pair:
        for turn in range(12):
            size = (1, 3, 100, 101, 250)[turn % 5]
            # First all are new, then more and more of them are there.
            ids = [f"i{n}" for n in rng.choice(900, size, replace=False).tolist()]
            subjects = [("", "einer", "zweí", "d" * 256)[n] for n in rng.integers(4, size=size)]
            metadata = [facts[n] for n in rng.integers(3, size=size)]
            some = vectors(size, seed=turn % 3)  # so that vectors of earlier turns come again
            some[size // 2] = some[0]
            answers = pair.check(packed(ids, some, subjects, metadata))
            assert all(isinstance(one, Enrolled) for one in answers)
            pair.check(packed(ids, some, subjects, metadata))  # which changes nothing
            gone = ids[: size // 3]
            for one in (pair.columns, pair.rows):
                one.remove(ids=gone).result()
    with opened(tmp_path, SMALL) as galleries:  # every checksum holds
        again = [galleries.get(name) for name in pair.names]
        assert len(found(again[0], vectors(3, 99))) > 1_000
        assert found(again[0], vectors(3, 99)) == found(again[1], vectors(3, 99))


def test_ids_are_made_for_columns_without(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as one:
        some = vectors(4)
        results = one.enroll(packed(["", "mine", "", ""], some)).result().results
        ids = [result.id for result in results if isinstance(result, Enrolled)]
        assert ids[1] == "mine"
        assert len(set(ids)) == 4
        hits = one.search(some, k=1).results
        assert [hit.hits[0].item_id for hit in hits] == ids


WRONG_IDS = ("a b", "ä", "a\nb", "\n", "a\0b", "x" * 129, "\ud800", "a\n", "i\u2028")


@pytest.mark.parametrize("wrong", WRONG_IDS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wrong_id_among_columns_is_named(tmp_path: Path, wrong: str, place: int) -> None:
    ids = ["first", "x" * 128, "A-Z_a.z:0"]
    ids[place] = wrong
    with both(tmp_path) as pair:
        answers = pair.check(packed(ids, vectors(3)))
        (kind, _, where) = answers[place]  # type: ignore[misc]
        assert (kind, where) == (InvalidInput, f"items[{place}].item.id")
        assert [type(one) for i, one in enumerate(answers) if i != place] == [Enrolled] * 2


def test_of_an_id_that_columns_hold_twice_the_first_is_enrolled(tmp_path: Path) -> None:
    with both(tmp_path) as pair:
        answers = pair.check(packed(["a", "b", "a"], vectors(3)))
        assert [type(one) for one in answers] == [Enrolled, Enrolled, tuple]
        assert "twice" in str(answers[2])


@pytest.mark.parametrize("atomic", [False, True])
def test_what_else_is_wrong_in_a_column_is_named(tmp_path: Path, atomic: bool) -> None:
    ids = ["a", "b", "c"]
    with both(tmp_path, metric=Metric.COSINE) as pair:
        for bad in (np.nan, np.inf, 0.0):
            some = vectors(3)
            some[1] = bad
            answers = pair.check(packed(ids, some), atomic=atomic)
            assert "items[1].input" in str(answers)
        assert ZeroVector.__name__ in str(answers)
        for subject in ("x" * 257, "\ud800", "nul\0"):
            answers = pair.check(packed(ids, vectors(3), ["", "", subject]), atomic=atomic)
            assert "items[2].item.subject" in str(answers)
        for facts in ({"count": "three"}, {"": 1}, {"other": "x" * 20_000}):
            answers = pair.check(packed(ids, vectors(3), None, [facts, {}, {}]), atomic=atomic)
            assert "items[0].item.metadata" in str(answers)
        wide = np.ones((3, 5), dtype=np.float32)
        assert "WrongShape" in str(pair.check(packed(ids, wide), atomic=atomic))
        assert "WrongShape" in str(pair.check(packed(ids, vectors(3).astype(np.float64))))  # type: ignore[arg-type]
        # What cannot be ranked in float32 is sound.
        pair.check(packed(ids, vectors(3) * np.float32(1e30)), atomic=atomic)


@pytest.mark.parametrize("atomic", [False, True])
def test_columns_fill_a_gallery_as_far_as_there_is_room(tmp_path: Path, atomic: bool) -> None:
    with both(tmp_path, max_items=5) as pair:
        pair.check(packed(["a", "b", "c"], vectors(3)))
        answers = pair.check(packed(["d", "e", "f"], vectors(3, 1)), atomic=atomic)
        assert answers[-1][0] is GalleryFull  # type: ignore[index]
        assert pair.columns.status().item_count == (3 if atomic else 5)
        pair.check(packed(["a", "b", "c"], vectors(3, 2)))


def test_columns_that_are_too_many_bytes_leave_nothing(tmp_path: Path) -> None:
    with both(tmp_path, max_bytes=1 << 20) as pair:
        ids = [f"{n:0>128}" for n in range(6_000)]
        for _ in range(2):
            assert pair.check(packed(ids, vectors(6_000)))[0][0] is GalleryFull  # type: ignore[index]
        assert pair.columns.status().item_count == 0
        pair.check(packed(["a"], vectors(1)))
        assert kept(pair.columns)[0][0][:2] == (1, "a")  # type: ignore[index]


def test_a_retry_of_columns_is_answered_as_before(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as one:
        items = packed(["a", "b"], vectors(2))
        first = one.enroll(items, request_id="r").result()
        assert one.enroll(items, request_id="r").result() == first
        assert one.enroll(list(items), request_id="r").result() == first
        with pytest.raises(InvalidInput, match="another request"):
            one.enroll(packed(["a", "b"], vectors(2, 1)), request_id="r").result()


def test_what_one_commit_does_to_new_items_is_done_in_order(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as one:
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go_on.wait(10)

        one._writer.call(hold)
        held.wait(10)
        some = vectors(4)
        waiting: list[Future[Any]] = [
            one.enroll([NewItem("before", embedding=some[3])]),
            one.enroll(packed(["a", "b", "c"], some[:3])),
            one.enroll(packed(["b", "c"], some[2:])),  # there, in the same commit
            one.remove(ids=["a", "before"]),
            one.enroll(packed(["a", "d"], some[:2])),
            one.move("whose", ids=["d"]),
        ]
        committed = one.store.sequence
        go_on.set()
        outcomes = [future.result() for future in waiting]
        assert one.store.sequence == committed + len(waiting)
        changes = [
            [result.change.value for result in outcome.results]
            for outcome in outcomes
            if isinstance(outcome, EnrollOutcome)
        ]
        assert changes == [["created"], ["created"] * 3, ["replaced"] * 2, ["created"] * 2]
        hits = one.search(some, k=1, by_subject=False).results
        assert [(hit.hits[0].item_id, hit.hits[0].distance) for hit in hits] == [
            ("a", 0.0), ("d", 0.0), ("b", 0.0), ("c", 0.0)
        ]  # fmt: skip
        status = one.status()
        assert (status.item_count, status.subject_count) == (4, 4)
        before = found(one, some)
    with opened(tmp_path) as galleries:
        assert found(galleries.get("faces"), some) == before


def test_vectors_with_one_digest_stay_apart_in_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (transactions, gallery, memory):
        if hasattr(module, "digest"):
            monkeypatch.setattr(module, "digest", lambda data: bytes(8) + bytes(data[:8]))
    with one_gallery(tmp_path, settings()) as one:
        some = vectors(6)
        some[4] = some[1]
        one.enroll(packed(list("abc"), some[:3])).result()
        one.enroll(packed(list("def"), some[3:])).result()
        hits = one.search(some, k=1, by_subject=False, exact=True).results
        assert [hit.hits[0].item_id for hit in hits] == ["a", "b", "c", "d", "b", "f"]
        assert [hit.hits[0].distance for hit in hits] == [0.0] * 6
        assert one.status().dead_count == 0


def test_what_new_items_share_is_kept_once(tmp_path: Path) -> None:
    with one_gallery(tmp_path, settings()) as one:
        some = vectors(5)
        some[3] = some[1]
        one.enroll(packed(list("abcde"), some, ["s", "t", "s", "", "d"])).result()
        assert one.view.rows.vector_count == 4
        # Of e the subject is "d", and so is that of d, which has none beside its id.
        assert one.status().subject_count == 3
        assert one.verify("s", some[0]).items_compared == 2
        assert one.verify("d", some[0]).items_compared == 2
        one.remove(ids=["b"]).result()
        assert one.view.rows.vector_count == 4
        one.remove(ids=["d"]).result()
        assert one.view.rows.vector_count == 3
        assert one.status().subject_count == 2


def test_columns_are_the_rows_they_stand_for() -> None:
    items = packed(["a", "b", "c"], vectors(3), ["", "s", ""], [{}, {"count": 1}, {}])
    assert len(items) == 3
    assert [(one.id, one.subject, dict(one.metadata)) for one in items[1:]] == [
        ("b", "s", {"count": 1}),
        ("c", "", {}),
    ]
    assert items[-1].embedding is not None
    assert items[-1].embedding.tolist() == vectors(3)[2].tolist()
