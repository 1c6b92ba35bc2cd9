"""Enrolling, reading, searching and removing, on points that can be checked by hand."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import SMALL, new, one_gallery, opened, settings, vector
from twinserve.distance import Metric
from twinserve.errors import (
    DeadlineExceeded,
    GalleryFull,
    IndexDebtTooHigh,
    InvalidInput,
    ItemNotFound,
    LimitExceeded,
    NotFinite,
    SubjectNotFound,
    TwinserveError,
    Unavailable,
    UndeclaredKey,
    WrongShape,
    ZeroVector,
)
from twinserve.server.gallery import (
    All,
    Any_,
    AnyOf,
    Change,
    Clause,
    Enrolled,
    Equals,
    Exists,
    Filter,
    GalleryLimits,
    InRange,
    Not,
)

NOON = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def ids_found(gallery, probe, **more):
    (hits,) = gallery.search(np.asarray([probe], dtype=np.float32), **more).results
    return [hit.item_id for hit in hits.hits]


def test_an_item_comes_back_exactly_as_it_was_enrolled(quick_folder: Path) -> None:
    facts = {"colour": "grün", "count": -(2**63), "weight": 0.1, "seen": True, "at": NOON, "x": 1}
    embedding = vector(1e-30, -0.0, 3.14159, 1e30)
    with one_gallery(quick_folder, settings()) as gallery:
        outcome = gallery.enroll([new("a", embedding, "anna", facts)]).result()
        assert outcome.results == (Enrolled("a", Change.CREATED),)
        item, stored = gallery.get_item("a")
        assert (item.id, item.subject, dict(item.metadata)) == ("a", "anna", facts)
        assert type(item.metadata["seen"]) is bool
        assert stored is not None
        assert stored.tobytes() == embedding.tobytes()
    with opened(quick_folder) as galleries:  # and after a restart
        again, stored = galleries.get("faces").get_item("a")
        assert again == item
        assert stored is not None
        assert stored.tobytes() == embedding.tobytes()


def test_hits_are_nearest_first_with_ties_by_id(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll(
            [
                new("far", [3, 4, 0, 0]),
                new("b", [1, 0, 0, 0]),
                new("a", [0, 1, 0, 0]),
                new("at", [0, 0, 0, 0]),
            ]
        ).result()
        outcome = gallery.search(np.zeros((1, 4), dtype=np.float32), k=10)
    (hits,) = outcome.results
    assert [(hit.item_id, hit.distance) for hit in hits.hits] == [
        ("at", 0.0),
        ("a", 1.0),
        ("b", 1.0),
        ("far", 5.0),
    ]
    assert hits.exact
    assert outcome.subjects == 4


def test_cosine_distance_ignores_length(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(metric=Metric.COSINE)) as gallery:
        gallery.enroll(
            [
                new("same", [1e-20, 0, 0, 0]),
                new("right", [0, 7, 0, 0]),
                new("opposite", [-3, 0, 0, 0]),
            ]
        ).result()
        (hits,) = gallery.search(np.array([[5, 0, 0, 0]], dtype=np.float32), k=3).results
    assert [(hit.item_id, hit.distance) for hit in hits.hits] == [
        ("same", 0.0),
        ("right", 1.0),
        ("opposite", 2.0),
    ]


def test_one_hit_per_subject_names_the_item_that_decided(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll(
            [
                new("a1", [1, 0, 0, 0], "anna"),
                new("a2", [2, 0, 0, 0], "anna"),
                new("b1", [3, 0, 0, 0], "bert"),
                new("alone", [4, 0, 0, 0]),
            ]
        ).result()
        outcome = gallery.search(np.zeros((1, 4), dtype=np.float32), k=2)
        assert [(hit.item_id, hit.subject) for hit in outcome.results[0].hits] == [
            ("a1", "anna"),
            ("b1", "bert"),
        ]
        assert outcome.subjects == 3
        assert ids_found(gallery, [0, 0, 0, 0], k=9) == ["a1", "b1", "alone"]
        assert ids_found(gallery, [0, 0, 0, 0], k=2, by_subject=False) == ["a1", "a2"]
        assert ids_found(gallery, [0, 0, 0, 0], k=9, max_distance=3.0) == ["a1", "b1"]


def test_many_items_of_the_nearest_subject_do_not_hide_the_others(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        crowd = [new(f"c{n:03}", [n / 1000, 0, 0, 0], "crowd") for n in range(300)]
        gallery.enroll([*crowd, new("other", [9, 0, 0, 0], "other")]).result()
        assert ids_found(gallery, [0, 0, 0, 0], k=2) == ["c000", "other"]


def test_verification_answers_the_nearest_item_of_the_subject(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll(
            [
                new("a1", [3, 4, 0, 0], "anna"),
                new("a2", [0, 0, 2, 0], "anna"),
                new("alone", [0, 0, 0, 1]),
            ]
        ).result()
        nearest = gallery.verify("anna", vector(0, 0, 0, 0))
        assert (nearest.distance, nearest.item_id, nearest.items_compared) == (2.0, "a2", 2)
        assert gallery.verify("alone", vector(0, 0, 0, 0)).item_id == "alone"
        with pytest.raises(SubjectNotFound, match="nobody"):
            gallery.verify("nobody", vector(0, 0, 0, 0))
        gallery.remove(subject="anna").result()
        with pytest.raises(SubjectNotFound, match="anna"):
            gallery.verify("anna", vector(0, 0, 0, 0))


def test_the_same_content_is_unchanged_and_other_content_replaces(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:

        def change(*args, **more):
            (result,) = gallery.enroll([new(*args, **more)]).result().results
            assert isinstance(result, Enrolled), result
            return result.change

        assert change("a", [1, 0, 0, 0], "anna", digest=b"one") is Change.CREATED
        created = gallery.get_item("a")[0]
        assert change("a", [1, 0, 0, 0], "anna", digest=b"one") is Change.UNCHANGED
        # The digest of the input decides, not the floats: another batch may give other last bits.
        assert change("a", [1.0000001, 0, 0, 0], "anna", digest=b"one") is Change.UNCHANGED
        assert gallery.get_item("a")[0] == created
        assert change("a", None, "bert", {"colour": "red"}) is Change.REPLACED
        assert change("a", None, "bert", {"colour": "red"}) is Change.UNCHANGED
        assert change("a", [0, 1, 0, 0], "bert", {"colour": "red"}, b"two") is Change.REPLACED
        item, embedding = gallery.get_item("a")
        assert embedding is not None
        assert embedding.tolist() == [0, 1, 0, 0]
        assert item.create_time == created.create_time
        assert item.update_time > created.update_time
        assert gallery.status().item_count == gallery.status().subject_count == 1


def test_a_new_subject_moves_the_item_without_its_embedding(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll([new("a", [1, 2, 3, 4], "anna")]).result()
        gallery.enroll([new("a", None, "bert")]).result()
        (hits,) = gallery.search(np.array([[1, 2, 3, 4]], dtype=np.float32), k=5).results
        assert [(hit.item_id, hit.subject, hit.distance) for hit in hits.hits] == [("a", "bert", 0)]
        (missing,) = gallery.enroll([new("b", None, "bert")]).result().results
        assert isinstance(missing, ItemNotFound)


def test_a_replaced_or_removed_vector_never_appears_again(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0]), new("b", [2, 0, 0, 0])]).result()
        gallery.enroll([new("a", [9, 0, 0, 0])]).result()
        assert gallery.remove(ids=["b", "never"]).result().removed == 1
        assert ids_found(gallery, [1, 0, 0, 0], k=5) == ["a"]
        with pytest.raises(ItemNotFound, match="'b'"):
            gallery.get_item("b")
    with opened(quick_folder) as galleries:
        (hits,) = galleries.get("faces").search(np.zeros((1, 4), np.float32), k=5).results
        assert [(hit.item_id, hit.distance) for hit in hits.hits] == [("a", 9.0)]


def test_the_server_makes_an_id_where_none_is_given(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        results = gallery.enroll([new("", [1, 0, 0, 0]), new("", [1, 0, 0, 0])]).result().results
        made = [result.id for result in results if isinstance(result, Enrolled)]
        assert len(set(made)) == 2
        assert all(len(item_id) == 32 for item_id in made)


BAD_ITEMS = {
    "nan": (new("x", [np.nan, 0, 0, 0]), NotFinite, "input"),
    "infinity": (new("x", [np.inf, 0, 0, 0]), NotFinite, "input"),
    "too short": (new("x", [1, 0, 0]), WrongShape, "input"),
    "bad id": (new("x y", [1, 0, 0, 0]), InvalidInput, "item.id"),
    "long id": (new("x" * 129, [1, 0, 0, 0]), InvalidInput, "item.id"),
    "id with a newline": (new("x\n", [1, 0, 0, 0]), InvalidInput, "item.id"),
    "long subject": (new("x", [1, 0, 0, 0], "ü" * 129), LimitExceeded, "item.subject"),
    "lone surrogate": (new("x", [1, 0, 0, 0], "\ud800"), InvalidInput, ""),
    "nul": (new("x", [1, 0, 0, 0], "a\0b"), InvalidInput, ""),
    "wrong type": (new("x", [1, 0, 0, 0], "", {"count": 1.0}), InvalidInput, "item.metadata"),
    "flag for integer": (new("x", [1, 0, 0, 0], "", {"count": True}), InvalidInput, "item.meta"),
    "huge integer": (new("x", [1, 0, 0, 0], "", {"count": 2**63}), InvalidInput, "item.metadata"),
    "nan metadata": (new("x", [1, 0, 0, 0], "", {"y": float("nan")}), InvalidInput, "item.meta"),
    "naive time": (new("x", [1, 0, 0, 0], "", {"y": datetime(2026, 1, 1)}), InvalidInput, "item"),
    "much metadata": (new("x", [1, 0, 0, 0], "", {"y": "z" * 20_000}), LimitExceeded, "item.meta"),
    "many keys": (new("x", [1, 0, 0, 0], "", {f"k{n}": n for n in range(65)}), LimitExceeded, ""),
    "twice": (new("good", [1, 0, 0, 0]), InvalidInput, "item.id"),
    "no input, no id": (new("", None), InvalidInput, "item.id"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_a_bad_item_is_refused_alone_unless_atomic(quick_folder: Path, case: str) -> None:
    bad, kind, field = BAD_ITEMS[case]
    with one_gallery(quick_folder, settings()) as gallery:
        good = new("good", [1, 0, 0, 0])
        with pytest.raises(kind):
            gallery.enroll([good, bad], atomic=True).result()
        assert gallery.status().item_count == 0
        first, second = gallery.enroll([good, bad]).result().results
        assert first == Enrolled("good", Change.CREATED)
        assert type(second) is kind
        assert second.field.startswith(f"items[1].{field}".rstrip("."))
        assert gallery.status().item_count == 1


def test_an_item_sent_twice_is_named_by_its_id_not_by_a_number(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        twice = [new("a", [1, 0, 0, 0]), new("a", [2, 0, 0, 0])]
        first, second = gallery.enroll(twice).result().results
    assert first == Enrolled("a", Change.CREATED)
    assert isinstance(second, InvalidInput)
    assert second.message == "item 'a' is in the request twice; send it once"
    assert second.field == "items[1].item.id"


def test_a_zero_vector_is_refused_under_cosine_only(quick_folder: Path) -> None:
    with opened(quick_folder) as galleries:
        for metric in Metric:
            galleries.create(settings(metric.value, metric=metric))
            gallery = galleries.get(metric.value)
            (result,) = gallery.enroll([new("zero", [0, 0, 0, 0])]).result().results
            assert isinstance(result, ZeroVector) == (metric is Metric.COSINE)
        with pytest.raises(ZeroVector):
            galleries.get("cosine").search(np.zeros((1, 4), dtype=np.float32), k=1)


@pytest.mark.parametrize("small", [False, True])
def test_bad_probes_are_refused_before_any_index_sees_them(quick_folder: Path, small: bool) -> None:
    limits = GalleryLimits(exact_scan_below=0, segment_rows=8) if small else GalleryLimits()
    with one_gallery(quick_folder, settings(), limits) as gallery:
        gallery.enroll([new(f"i{n}", [n, 1, 2, 3]) for n in range(40)]).result()
        good = np.ones((1, 4), dtype=np.float32)
        for probes, kind in (
            (np.ones((1, 5), dtype=np.float32), WrongShape),
            (np.ones((1, 3), dtype=np.float32), WrongShape),
            (np.ones(4, dtype=np.float32), WrongShape),
            (np.ones((1, 4), dtype=np.float64), WrongShape),
            (good * np.float32(np.nan), NotFinite),
            (good * np.float32(np.inf), NotFinite),
        ):
            with pytest.raises(kind):
                gallery.search(probes, k=1)
        for more in ({"k": 0}, {"k": -1}, {"k": 1, "ef": 0}, {"k": 1, "max_distance": np.nan}):
            with pytest.raises(InvalidInput):
                gallery.search(good, **more)
        assert len(ids_found(gallery, good[0], k=10**6)) == 40
        assert gallery.search(np.zeros((0, 4), dtype=np.float32), k=1).results == ()
        with pytest.raises(WrongShape):
            gallery.verify("i1", np.ones(3, dtype=np.float32))


def test_an_empty_gallery_finds_nobody(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        outcome = gallery.search(np.ones((2, 4), dtype=np.float32), k=3)
        assert [hits.hits for hits in outcome.results] == [(), ()]
        assert outcome.subjects == 0
        assert gallery.list_items(limit=10)[0] == []


FACTS = {
    "r1": {"colour": "red", "count": 1, "weight": 0.5, "seen": True, "at": NOON},
    "r2": {"colour": "red", "count": 2},
    "g3": {"colour": "green", "count": 3, "seen": False},
    "none": {},
}
FILTERS: list[tuple[Filter, set[str]]] = [
    (Clause("colour", Equals("red")), {"r1", "r2"}),
    (Clause("colour", Equals("blue")), set()),
    (Clause("colour", AnyOf(("green", "blue"))), {"g3"}),
    (Clause("colour", AnyOf(())), set()),
    (Clause("colour", InRange(at_least="h")), {"r1", "r2"}),
    (Clause("count", InRange(at_least=2, below=3)), {"r2"}),
    (Clause("count", InRange(below=3)), {"r1", "r2"}),
    (Clause("weight", Equals(0.5)), {"r1"}),
    (Clause("seen", Equals(False)), {"g3"}),
    (Clause("seen", Exists()), {"r1", "g3"}),
    (Clause("seen", Exists(False)), {"r2", "none"}),
    (Clause("at", InRange(at_least=NOON)), {"r1"}),
    (Clause("at", InRange(below=NOON)), set()),
    (Not(Clause("colour", Equals("red"))), {"g3", "none"}),
    (All((Clause("colour", Equals("red")), Clause("count", Equals(2)))), {"r2"}),
    (Any_((Clause("count", Equals(3)), Clause("seen", Equals(True)))), {"r1", "g3"}),
    (All(()), {"r1", "r2", "g3", "none"}),
    (Any_(()), set()),
]


def test_filters_pass_what_they_say_in_search_list_and_removal(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        everything = [
            new(name, [n, 0, 0, 0], "", facts) for n, (name, facts) in enumerate(FACTS.items())
        ]
        gallery.enroll(everything).result()
        for wanted, expected in FILTERS:
            assert set(ids_found(gallery, [0, 0, 0, 0], k=9, filter=wanted)) == expected, wanted
            listed, _ = gallery.list_items(limit=9, filter=wanted)
            assert {item.id for item in listed} == expected, wanted
            assert gallery.remove(filter=wanted).result().removed == len(expected), wanted
            assert gallery.status().item_count == len(FACTS) - len(expected)
            gallery.enroll(everything).result()


def test_a_filter_on_an_undeclared_key_or_another_type_is_refused(quick_folder: Path) -> None:
    deep: Filter = Clause("count", Equals(1))
    for _ in range(20):
        deep = Not(deep)
    with one_gallery(quick_folder, settings()) as gallery:
        for wanted, kind in (
            (Clause("size", Equals(1)), UndeclaredKey),
            (Not(All((Clause("size", Exists()),))), UndeclaredKey),
            (Clause("count", Equals("1")), InvalidInput),
            (Clause("count", InRange()), InvalidInput),
            (Clause("seen", InRange(at_least=True)), InvalidInput),
            (Clause("weight", AnyOf((0.5, 1))), InvalidInput),
            (deep, InvalidInput),
        ):
            for call in (
                lambda wanted=wanted: gallery.list_items(limit=1, filter=wanted),
                lambda wanted=wanted: gallery.remove(filter=wanted),
                lambda wanted=wanted: ids_found(gallery, [0, 0, 0, 0], k=1, filter=wanted),
            ):
                with pytest.raises(kind):
                    call()


def test_listing_pages_in_bytewise_order_of_ids(quick_folder: Path) -> None:
    names = ["B", "a", "a.1", "a:2", "a_", "b", "10", "9", "-"]
    with one_gallery(quick_folder, settings()) as gallery:
        gallery.enroll([new(name, [1, 0, 0, 0]) for name in names]).result()
        found: list[str] = []
        while page := gallery.list_items(after=found[-1] if found else "", limit=2)[0]:
            found += [item.id for item in page]
        assert found == sorted(names, key=str.encode)
        assert [item.id for item in gallery.items(["b", "gone", "B"])] == ["b", "B"]


def test_a_request_id_gives_the_first_answer_again_also_after_a_restart(quick_folder: Path) -> None:
    items = [new("", [1, 0, 0, 0]), new("bad id", [1, 0, 0, 0])]
    with one_gallery(quick_folder, settings()) as gallery:
        first = gallery.enroll(items, request_id="r", request_digest=b"body").result()
        assert gallery.enroll(items, request_id="r", request_digest=b"body").result().token == (
            first.token
        )
        with pytest.raises(InvalidInput, match="another request"):
            gallery.enroll(items, request_id="r", request_digest=b"other").result()
        with pytest.raises(InvalidInput, match="another request"):
            gallery.remove(ids=["x"], request_id="r", request_digest=b"body").result()
        made = first.results[0]
        assert isinstance(made, Enrolled)
        removal = gallery.remove(ids=[made.id], request_id="q", request_digest=b"x").result()
        assert removal.removed == 1
    with opened(quick_folder) as galleries:
        gallery = galleries.get("faces")
        again = gallery.enroll(items, request_id="r", request_digest=b"body").result()
        assert again.results[0] == made
        refused, before = again.results[1], first.results[1]
        assert isinstance(refused, TwinserveError)
        assert isinstance(before, TwinserveError)
        assert (type(refused), refused.message, refused.field) == (
            type(before),
            before.message,
            before.field,
        )
        assert (
            gallery.remove(ids=[made.id], request_id="q", request_digest=b"x").result() == removal
        )
        assert gallery.status().item_count == 0


def test_an_answer_is_forgotten_after_its_time(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(), GalleryLimits(replay_seconds=0.0)) as gallery:
        for _ in range(2):
            gallery.enroll([new("", [1, 0, 0, 0])], request_id="r").result()
        assert gallery.status().item_count == 2


def test_a_token_waits_for_its_state_and_only_this_gallery_takes_it(quick_folder: Path) -> None:
    with opened(quick_folder) as galleries:
        galleries.create(settings("one"))
        galleries.create(settings("two"))
        one, two = galleries.get("one"), galleries.get("two")
        token = one.enroll([new("a", [1, 0, 0, 0])]).result().token
        one.wait_for(token, 0.0)
        one.wait_for("", 0.0)
        assert one.search(np.zeros((1, 4), np.float32), k=1).token == token
        for bad in (token[:-1], "x", "ä", "=" * 22, "A" * 22, token + "A"):
            with pytest.raises(InvalidInput, match="consistency token"):
                one.wait_for(bad, 0.0)
        with pytest.raises(InvalidInput):
            two.wait_for(token, 0.0)


def test_a_token_of_a_later_state_is_waited_for_until_the_deadline(quick_folder: Path) -> None:
    with one_gallery(quick_folder / "a", settings()) as gallery:
        gallery.enroll([new("a", [1, 0, 0, 0])]).result()
        earlier = quick_folder / "b"
        folder = next((quick_folder / "a" / "galleries").iterdir()).name
    shutil.copytree(quick_folder / "a", earlier)
    with opened(quick_folder / "a") as galleries:
        later = galleries.get("faces").enroll([new("b", [1, 0, 0, 0])]).result().token
    assert folder in {path.name for path in (earlier / "galleries").iterdir()}
    with opened(earlier) as galleries:
        gallery = galleries.get("faces")
        with pytest.raises(DeadlineExceeded):
            gallery.wait_for(later, 0.05)
        timer = threading.Timer(0.1, lambda: gallery.enroll([new("c", [1, 0, 0, 0])]))
        timer.start()
        gallery.wait_for(later, 10.0)
        timer.join()


def test_a_full_gallery_refuses_new_items_and_still_replaces(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings(max_items=2)) as gallery:
        items = [new(name, [1, 0, 0, 0]) for name in "abc"]
        results = gallery.enroll(items).result().results
        assert [type(result) for result in results] == [Enrolled, Enrolled, GalleryFull]
        with pytest.raises(GalleryFull):
            gallery.enroll([new("d", [1, 0, 0, 0])], atomic=True).result()
        (replaced,) = gallery.enroll([new("a", [2, 0, 0, 0])]).result().results
        assert replaced == Enrolled("a", Change.REPLACED)
        gallery.remove(ids=["b"]).result()
        assert isinstance(gallery.enroll([new("d", [1, 0, 0, 0])]).result().results[0], Enrolled)


def test_removal_wants_exactly_one_target(quick_folder: Path) -> None:
    with one_gallery(quick_folder, settings()) as gallery:
        for target in ({}, {"ids": ["a"], "subject": "b"}, {"subject": ""}):
            with pytest.raises(InvalidInput):
                gallery.remove(**target)
        gallery.enroll([new("a", [1, 0, 0, 0]), new("b", [1, 0, 0, 0], "a")]).result()
        # An item without a subject is its own, by its id.
        assert gallery.remove(subject="a").result().removed == 2


def test_too_much_index_debt_pushes_back_until_it_is_worked_off(quick_folder: Path) -> None:
    limits = GalleryLimits(exact_scan_below=0, segment_rows=8, max_index_debt=16)
    rng = np.random.default_rng(5)
    with one_gallery(quick_folder, settings(), limits) as gallery:
        with pytest.raises(IndexDebtTooHigh) as refused:
            gallery.enroll([new(f"x{n}", rng.normal(size=4)) for n in range(17)])
        assert refused.value.retry_after
        stored = 0
        for _ in range(2_000):
            try:
                batch = [new(f"i{stored + n}", rng.normal(size=4)) for n in range(8)]
                gallery.enroll(batch).result()
                stored += 8
            except IndexDebtTooHigh:
                threading.Event().wait(0.005)
            if stored >= 200:
                break
        assert gallery.status().item_count == stored == 200


@pytest.mark.parametrize("metric", list(Metric))
def test_vectors_too_large_or_small_for_float32_are_still_ranked(
    quick_folder: Path, metric: Metric
) -> None:
    with one_gallery(quick_folder, settings(metric=metric), SMALL) as gallery:
        huge = [new(f"h{n:02}", [1e38, n * 1e37, 0, 0]) for n in range(30)]
        tiny = [new(f"t{n:02}", [1e-38, -(n + 1) * 1e-39, 0, 0]) for n in range(30)]
        gallery.enroll([*huge, *tiny]).result()
        assert ids_found(gallery, [1e38, 2.9e38, 0, 0], k=2) == ["h29", "h28"]
        assert gallery.verify("t07", vector(1e-38, -8e-39, 0, 0)).distance < 1e-7


class NotNow(Exception):
    pass


def fails(*_: object) -> None:
    raise NotNow


def test_memory_that_fails_after_a_commit_is_read_anew(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_gallery(quick_folder, settings(), SMALL) as gallery:
        gallery.enroll([new(f"i{n}", [n, 0, 0, 0]) for n in range(40)]).result()
        with monkeypatch.context() as patched:
            # In the middle of the publication: the new row is there, the old one not yet dead.
            patched.setattr(gallery._memory, "_let_go", fails)
            outcome = gallery.enroll([new("i7", [100, 0, 0, 0]), new("x", [0, 5, 0, 0])]).result()
        assert [result.change for result in outcome.results] == [Change.REPLACED, Change.CREATED]
        gallery.wait_for(outcome.token, 1.0)
        assert gallery.status().item_count == 41
        assert ids_found(gallery, [100, 0, 0, 0], k=1) == ["i7"]
        assert "i7" not in ids_found(gallery, [7, 0, 0, 0], k=3)
        gallery.enroll([new("i7", [200, 0, 0, 0])]).result()
        assert ids_found(gallery, [200, 0, 0, 0], k=1) == ["i7"]


def test_memory_that_cannot_be_read_anew_takes_the_gallery_out_of_service(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(quick_folder) as galleries:
        galleries.create(settings())
        galleries.create(settings("other"))
        gallery = galleries.get("faces")
        with monkeypatch.context() as patched:
            patched.setattr(gallery._memory, "publish", fails)
            patched.setattr(gallery, "_loaded", fails)
            gallery.enroll([new("a", [1, 0, 0, 0])]).result()  # committed, so answered
        for refused in (
            gallery.status,
            lambda: gallery.get_item("a"),
            lambda: gallery.items(["a"]),
            lambda: gallery.list_items(limit=1),
            lambda: ids_found(gallery, [1, 0, 0, 0], k=1),
            lambda: gallery.verify("a", vector(1, 0, 0, 0)),
            lambda: gallery.enroll([new("b", [1, 0, 0, 0])]),
            lambda: gallery.remove(ids=["a"]),
        ):
            with pytest.raises(Unavailable, match="restart the server"):
                refused()
        assert [status.settings.name for status in galleries.list()] == ["other"]
    with opened(quick_folder) as galleries:
        assert galleries.get("faces").get_item("a")[0].id == "a"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", list(Metric))
def test_an_extreme_vector_slows_nobody_down_once_it_is_gone(
    quick_folder: Path, metric: Metric
) -> None:
    rng = np.random.default_rng(12)
    vectors = rng.normal(size=(50, 4))
    items = [new(f"i{n:02}", row) for n, row in enumerate(vectors)]
    extreme = [new("huge", [1e38, 0, 0, 0]), new("tiny", [1e-38, 0, 0, 0])]
    # Without a rebuild (all is scanned) and with graphs in its stead.
    for number, limits in enumerate((GalleryLimits(segment_rows=16), SMALL)):
        folder = quick_folder / str(number)
        with one_gallery(folder, settings(metric=metric), limits) as gallery:
            gallery.enroll([*items[:25], *extreme, *items[25:]]).result()
            assert not gallery.view.safe
            gallery.remove(ids=["huge"]).result()
            gallery.enroll([new("tiny", [1, 0, 0, 0])]).result()
            assert gallery.view.safe
            for exact in (True, False):
                for n in (0, 24, 25, 49):
                    found = ids_found(gallery, vectors[n], k=1, exact=exact)
                    assert found == [f"i{n:02}"]
            assert len(ids_found(gallery, vectors[0], k=60, exact=True)) == 51
