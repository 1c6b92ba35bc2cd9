"""Moving items to another subject, renaming subjects, counting and listing them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import SMALL, new, one_gallery, opened, settings, vector
from twinserve.errors import (
    AlreadyExists,
    InvalidInput,
    ItemNotFound,
    LimitExceeded,
    SubjectNotFound,
    UndeclaredKey,
)
from twinserve.server.gallery import Clause, Equals, Gallery, GalleryLimits

RED, BLUE = (Clause("colour", Equals(colour)) for colour in ("red", "blue"))


def filled(gallery: Gallery) -> None:
    """Two items of ann, one of ben, and one that is its own subject."""
    gallery.enroll(
        [
            new("a1", [1, 0, 0, 0], "ann", {"colour": "red"}),
            new("a2", [2, 0, 0, 0], "ann", {"colour": "blue"}),
            new("b1", [3, 0, 0, 0], "ben", {"colour": "red"}),
            new("cat", [4, 0, 0, 0], "", {"colour": "red"}),
        ]
    ).result()


def subjects(gallery: Gallery) -> dict[str, str]:
    """The subject of each item as the store has it, which memory must say too."""
    listed = {item.id: item.subject for item in gallery.list_items(limit=100)[0]}
    probe = np.zeros((1, 4), np.float32)
    (hits,) = gallery.search(probe, k=100, by_subject=False).results
    assert {hit.item_id: hit.subject for hit in hits.hits} == listed
    return listed


def test_moved_items_have_the_new_subject_and_keep_everything_else(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), SMALL) as gallery:
        filled(gallery)
        before, _ = gallery.get_item("a2")
        state = gallery.view.sequence
        moved = gallery.move("ben", ids=["a2", "b1", "a2"]).result()
        assert moved.moved == 1, "b1 was of ben before, and a2 is one item"
        assert gallery.view.sequence == state + 1
        gallery.wait_for(moved.token, 0.0)
        assert subjects(gallery) == {"a1": "ann", "a2": "ben", "b1": "ben", "cat": ""}
        item, embedding = gallery.get_item("a2")
        assert np.array_equal(embedding, vector(2, 0, 0, 0))
        assert (item.metadata, item.create_time) == (before.metadata, before.create_time)
        assert item.update_time > before.update_time
        assert gallery.verify("ben", vector(2, 0, 0, 0)).item_id == "a2"
        assert gallery.status().subject_count == 3


def test_an_empty_subject_makes_each_item_its_own(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        assert gallery.move("", ids=["a1", "a2", "cat"]).result().moved == 2
        assert subjects(gallery) == {"a1": "", "a2": "", "b1": "ben", "cat": ""}
        assert gallery.status().subject_count == 4
        with pytest.raises(SubjectNotFound):
            gallery.verify("ann", vector(1, 0, 0, 0))


def test_an_unknown_id_fails_the_move_and_nothing_moves(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        state = gallery.view.sequence
        with pytest.raises(ItemNotFound, match="'nobody'") as caught:
            gallery.move("ben", ids=["a1", "nobody", "a2"]).result()
        assert caught.value.field == "ids.ids[1]"
        assert caught.value.resource == ("item", "nobody")
        assert subjects(gallery)["a1"] == "ann"
        assert gallery.view.sequence == state


def test_a_filter_chooses_the_items_that_move(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        assert gallery.move("reds", filter=RED).result().moved == 3
        assert subjects(gallery) == {"a1": "reds", "a2": "ann", "b1": "reds", "cat": "reds"}
        nothing = Clause("colour", Equals("green"))
        token = gallery.move("green", filter=nothing).result().token
        assert token == gallery.move("reds", filter=RED).result().token, "neither changed anything"


def test_what_a_move_cannot_take_is_refused(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        for sources in ({}, {"ids": ["a1"], "filter": RED}):
            with pytest.raises(InvalidInput, match="exactly one"):
                gallery.move("x", **sources)
        with pytest.raises(LimitExceeded) as caught:
            gallery.move("x" * 257, ids=["a1"])
        assert caught.value.field == "subject"
        with pytest.raises(InvalidInput, match="NUL") as nul:
            gallery.move("x\0", ids=["a1"])
        assert nul.value.field == "subject"
        with pytest.raises(UndeclaredKey):
            gallery.move("x", filter=Clause("taste", Equals("sweet")))


def test_a_renamed_subject_takes_all_its_items_along_in_one_state(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), SMALL) as gallery:
        filled(gallery)
        state = gallery.view.sequence
        renamed = gallery.rename("ann", "anna").result()
        assert renamed.moved == 2
        assert gallery.view.sequence == state + 1
        assert subjects(gallery) == {"a1": "anna", "a2": "anna", "b1": "ben", "cat": ""}
        assert gallery.count(subject="anna").items == 2
        assert gallery.count(subject="ann").items == 0


def test_an_item_without_a_subject_is_renamed_by_its_id(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        gallery.enroll([new("x", [5, 0, 0, 0], "cat")]).result()
        assert gallery.rename("cat", "tom").result().moved == 2
        assert subjects(gallery)["cat"] == subjects(gallery)["x"] == "tom"


@pytest.mark.parametrize("new_name", ["ben", "cat"])
def test_a_name_that_has_items_is_taken_unless_both_are_to_be_one(
    quick_folder: Path, new_name: str
) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        with pytest.raises(AlreadyExists, match="merge") as caught:
            gallery.rename("ann", new_name).result()
        assert caught.value.resource == ("subject", new_name)
        assert subjects(gallery)["a1"] == "ann"
        assert gallery.rename("ann", new_name, merge=True).result().moved == 2
        assert gallery.count(subject=new_name).items == 3
        assert gallery.status().subject_count == 2


def test_a_rename_of_nobody_or_to_nobody_is_refused(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        with pytest.raises(SubjectNotFound, match="'nobody'"):
            gallery.rename("nobody", "ben").result()
        for old, other, field in (("", "x", "subject"), ("x", "", "new_subject")):
            with pytest.raises(InvalidInput) as caught:
                gallery.rename(old, other)
            assert caught.value.field == field
        with pytest.raises(InvalidInput, match="both"):
            gallery.rename("ann", "ann")
        with pytest.raises(LimitExceeded):
            gallery.rename("ann", "x" * 257)


def test_moves_and_renames_outlive_a_restart_and_are_answered_again(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), SMALL) as gallery:
        filled(gallery)
        moved = gallery.move("ben", ids=["a1"], request_id="m", request_digest=b"1").result()
        renamed = gallery.rename("ben", "bob", request_id="r", request_digest=b"2").result()
        assert (moved.moved, renamed.moved) == (1, 2)
        known = subjects(gallery)
    assert known == {"a1": "bob", "a2": "ann", "b1": "bob", "cat": ""}
    with opened(quick_folder, SMALL) as galleries:
        gallery = galleries.get("faces")
        assert subjects(gallery) == known
        again = gallery.move("ben", ids=["a1"], request_id="m", request_digest=b"1")
        assert again.result() == moved
        again = gallery.rename("ben", "bob", request_id="r", request_digest=b"2")
        assert again.result() == renamed
        assert subjects(gallery) == known, "a retry does nothing"
        for misuse in (
            lambda: gallery.move("x", ids=["a1"], request_id="m", request_digest=b"x"),
            lambda: gallery.rename("ben", "bob", request_id="m", request_digest=b"1"),
            lambda: gallery.remove(ids=["a1"], request_id="r", request_digest=b"2"),
        ):
            with pytest.raises(InvalidInput, match="another request"):
                misuse().result()


def test_without_a_digest_the_body_itself_tells_a_retry(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        first = gallery.rename("ann", "ben", merge=True, request_id="r").result()
        assert gallery.rename("ann", "ben", merge=True, request_id="r").result() == first
        with pytest.raises(InvalidInput):
            gallery.rename("ann", "ben", request_id="r").result()
        first = gallery.move("zoe", filter=RED, request_id="m").result()
        assert gallery.move("zoe", filter=RED, request_id="m").result() == first
        with pytest.raises(InvalidInput):
            gallery.move("zoe", filter=BLUE, request_id="m").result()


def test_items_are_counted_by_filter_and_subject(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        assert (gallery.count().items, gallery.count(filter=RED).subjects) == (0, 0)
        filled(gallery)
        for chosen, items, of in (
            ({}, 4, 3),
            ({"filter": RED}, 3, 3),
            ({"filter": BLUE}, 1, 1),
            ({"subject": "ann"}, 2, 1),
            ({"subject": "ann", "filter": BLUE}, 1, 1),
            ({"subject": "cat"}, 1, 1),
            ({"subject": "nobody"}, 0, 0),
            ({"subject": "ben", "filter": BLUE}, 0, 0),
        ):
            found = gallery.count(**chosen)  # type: ignore[arg-type]
            assert (found.items, found.subjects) == (items, of), chosen
        removed = gallery.remove(ids=["a1"]).result()
        assert gallery.count(subject="ann").items == 1
        assert gallery.count().token == removed.token
        with pytest.raises(UndeclaredKey):
            gallery.count(filter=Clause("taste", Equals("sweet")))


def test_a_subjects_items_are_listed_by_id_page_by_page(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        names = ["Z", "a", "b", "c:1", "d", "m"]
        facts = [{"colour": "red" if i % 2 else "blue"} for i in range(len(names))]
        gallery.enroll(
            [
                new(name, [9, 0, 0, 0], "" if name == "m" else "m", fact)
                for name, fact in zip(names, facts, strict=True)
            ]
        ).result()

        def pages(**more: object) -> list[str]:
            found: list[str] = []
            while True:
                after = found[-1] if found else ""
                page, _ = gallery.list_items(after=after, limit=2, subject="m", **more)  # type: ignore[arg-type]
                found += [item.id for item in page]
                if len(page) < 2:
                    return found

        assert pages() == names
        assert pages(filter=RED) == names[1::2]
        assert gallery.list_items(limit=5, subject="nobody")[0] == []


def test_a_subjects_items_are_read_without_reading_the_others(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        filled(gallery)
        path = next((quick_folder / "galleries").iterdir()) / "store.db"
        statements: list[str] = []
        with gallery._store.reading() as reader:
            reader._connection.set_trace_callback(statements.append)
            reader.of_subject_after("ann", "", 10)
            reader._connection.set_trace_callback(None)
        with closing(sqlite3.connect(path)) as connection:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall()
        steps = " ".join(str(row[3]) for row in plan)
        assert "SCAN items" not in steps
        assert "items_by_subject (subject=?" in steps


def test_a_subject_of_many_items_is_renamed_without_touching_its_vectors(
    quick_folder: Path,
) -> None:
    count = 20_000
    limits = GalleryLimits(exact_scan_below=10**6)
    with one_gallery(quick_folder, settings(), limits) as gallery:
        vectors = np.random.default_rng(1).normal(size=(count, 4)).astype(np.float32)
        for start in range(0, count, 5_000):
            gallery.enroll(
                [new(f"i{i}", vectors[i], "many") for i in range(start, start + 5_000)]
            ).result()
        held = gallery.view.segments
        assert gallery.rename("many", "more").result().moved == count
        for before, now in zip(held, gallery.view.segments, strict=True):
            assert np.shares_memory(before.vectors, now.vectors)
        assert gallery.count(subject="more").items == count
