"""Aliases of galleries: durable, switched in one step, and no way to compare across spaces."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, opened, settings
from twinserve.distance import Metric
from twinserve.errors import (
    AlreadyExists,
    FailedPrecondition,
    GalleryFull,
    GalleryNotFound,
    InvalidInput,
    NotFound,
    SpaceMismatch,
    StoreDamaged,
    TwinserveError,
)
from twinserve.server.gallery import Galleries, GalleryLimits


def two(folder: Path) -> Galleries:
    """Galleries `one` and `two`; the alias `live` stands for `one`."""
    galleries = Galleries(folder)
    galleries.open()
    galleries.create(settings("one"))
    galleries.create(settings("two"))
    assert galleries.set_alias("live", "one") == ""
    return galleries


def test_an_alias_gives_the_gallery_that_it_stands_for(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        assert galleries.get("live") is galleries.get("one")
        assert galleries.status("live").settings.name == "one"
        assert galleries.set_alias("live", "two") == "one"
        assert galleries.get("live") is galleries.get("two")
        assert galleries.set_alias("live", "two") == "two", "nothing to do is no error"
        galleries.set_alias("best", "two")
        listed = {status.settings.name: status.aliases for status in galleries.list()}
        assert listed == {"one": (), "two": ("best", "live")}
        assert galleries.status("two").aliases == ("best", "live")
        assert galleries.create(settings("two")).aliases == ("best", "live")


def test_aliases_outlive_a_restart_and_end_for_good(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        galleries.set_alias("live", "two")
        galleries.set_alias("old", "one")
        galleries.delete_alias("old")
    with opened(quick_folder) as galleries:
        assert galleries.get("live").settings.name == "two"
        with pytest.raises(GalleryNotFound, match="'old'"):
            galleries.get("old")
        with pytest.raises(NotFound, match="no alias 'old'"):
            galleries.delete_alias("old")
        with pytest.raises(NotFound, match="a gallery has this name"):
            galleries.delete_alias("one")
        with pytest.raises(GalleryNotFound):
            galleries.set_alias("live", "nobody")
        assert galleries.get("live").settings.name == "two"


def test_an_alias_is_on_disk_before_it_is_used(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        with closing(sqlite3.connect(quick_folder / "catalog.db")) as another:
            another.execute(
                "CREATE TRIGGER full BEFORE INSERT ON gallery_aliases"
                " BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
            another.commit()
            with pytest.raises(TwinserveError):
                galleries.set_alias("live", "two")
            assert galleries.get("live").settings.name == "one"
            another.execute("DROP TRIGGER full")
            another.commit()
            galleries.set_alias("live", "two")
            rows = another.execute("SELECT alias, gallery FROM gallery_aliases").fetchall()
        assert rows == [("live", "two")]


def test_a_name_is_that_of_a_gallery_or_an_alias_and_never_of_both(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        with pytest.raises(AlreadyExists, match=r"'live' is an alias, which stands for gallery"):
            galleries.create(settings("live"))
        with pytest.raises(AlreadyExists, match="name of a gallery"):
            galleries.set_alias("two", "one")
        with pytest.raises(FailedPrecondition, match=r"'live' is an alias.*'one'"):
            galleries.set_alias("other", "live")
        for name in ("", "Live", "a/b", "x" * 64):
            with pytest.raises(InvalidInput, match="alias"):
                galleries.set_alias(name, "one")
        galleries.delete_alias("live")
        galleries.create(settings("live"))


def test_a_gallery_goes_only_once_nothing_stands_for_it(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        galleries.set_alias("best", "one")
        with pytest.raises(FailedPrecondition, match="best, live") as caught:
            galleries.delete("one")
        assert caught.value.metadata == {"aliases": "best,live"}
        with pytest.raises(FailedPrecondition, match=r"'live' is an alias.*'one'"):
            galleries.delete("live")
        galleries.get("one").enroll([new("a", [1, 0, 0, 0])]).result()
        galleries.set_alias("live", "two")
        galleries.delete_alias("best")
        galleries.delete("one")
        assert galleries.get("live").settings.name == "two"


def test_an_alias_does_not_move_to_where_its_calls_would_mean_something_else(
    quick_folder: Path,
) -> None:
    with closing(two(quick_folder)) as galleries:
        other = dataclasses.replace(settings("other"), space_id="elsewhere")
        galleries.create(other)
        galleries.create(settings("angles", metric=Metric.COSINE))
        with pytest.raises(SpaceMismatch, match="delete the alias first") as caught:
            galleries.set_alias("live", "other")
        assert caught.value.metadata == {"space_id": "elsewhere", "wanted_space_id": "space"}
        with pytest.raises(FailedPrecondition, match="euclidean"):
            galleries.set_alias("live", "angles")
        assert galleries.get("live").settings.name == "one"
        galleries.delete_alias("live")
        assert galleries.set_alias("live", "other") == ""


def test_an_alias_of_a_damaged_gallery_says_so_and_can_move_away(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        folder = galleries._open["one"][1].folder
    (quick_folder / "galleries" / folder / "store.db").unlink()
    with opened(quick_folder) as galleries:
        with pytest.raises(StoreDamaged):
            galleries.get("live")
        with pytest.raises(FailedPrecondition, match="live"):
            galleries.delete("one")
        with pytest.raises(StoreDamaged):
            galleries.set_alias("new", "one")
        with pytest.raises(AlreadyExists):
            galleries.set_alias("one", "two")
        assert galleries.set_alias("live", "two") == "one"
        galleries.delete("one")
    with opened(quick_folder) as galleries:
        assert galleries.get("live").settings.name == "two"


def test_a_token_of_before_a_switch_is_refused_after_it(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        token = galleries.get("live").enroll([new("a", [1, 0, 0, 0])]).result().token
        assert galleries.get("one").key != galleries.get("two").key
        galleries.set_alias("live", "two")
        with pytest.raises(InvalidInput, match="consistency token"):
            galleries.get("live").wait_for(token, 0.0)


def test_there_are_no_more_aliases_than_galleries_may_be(quick_folder: Path) -> None:
    with opened(quick_folder, GalleryLimits(max_galleries=2)) as galleries:
        galleries.create(settings("one"))
        galleries.set_alias("a", "one")
        galleries.set_alias("b", "one")
        with pytest.raises(GalleryFull, match="2 aliases"):
            galleries.set_alias("c", "one")
        galleries.set_alias("b", "one")


def test_who_asks_while_an_alias_moves_and_its_gallery_goes_always_finds_one(
    quick_folder: Path,
) -> None:
    with closing(two(quick_folder)) as galleries:
        stop = threading.Event()
        failures: list[Exception] = []

        def ask() -> None:
            while not stop.is_set():
                try:
                    galleries.get("live")
                except TwinserveError as error:
                    failures.append(error)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        for _ in range(10):
            for old, fresh in (("one", "two"), ("two", "one")):
                galleries.set_alias("live", fresh)
                galleries.delete(old)
                galleries.create(settings(old))
        stop.set()
        for asker in askers:
            asker.join()
        assert not failures


def test_a_call_that_is_inside_goes_on_with_the_gallery_that_it_found(quick_folder: Path) -> None:
    with closing(two(quick_folder)) as galleries:
        inside = galleries.get("live")
        galleries.set_alias("live", "two")
        inside.enroll([new("a", [1, 0, 0, 0])]).result()
        assert galleries.get("one").status().item_count == 1
        assert galleries.get("live").search(np.zeros((1, 4), np.float32), k=1).items == 0
