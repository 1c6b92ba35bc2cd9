"""Rows, their texts and subjects: saved and taken up again, and their dead left behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import KEYS, SMALL, new, one_gallery, opened, settings
from twinserve.server.gallery import (
    AnyOf,
    Clause,
    Equals,
    Exists,
    Filter,
    Gallery,
    GalleryLimits,
    InRange,
    MetadataValue,
    Not,
    rows,
    texts,
)
from twinserve.server.gallery.memory import Memory
from twinserve.server.gallery.rows import ALIVE, NOTHING, NewRows, Rows, RowsView, Subjects
from twinserve.server.gallery.search import Question, View, search
from twinserve.server.gallery.segments import Probes
from twinserve.server.gallery.texts import MAX_BYTES, Texts

START = datetime(2026, 1, 1, tzinfo=UTC)
FILTERS: tuple[Filter, ...] = (
    Clause("colour", Equals("grün")),
    Clause("colour", Equals("")),
    Clause("colour", AnyOf(("rot", "blau"))),
    Clause("colour", InRange(at_least="b", below="h")),
    Clause("colour", Exists()),
    Clause("count", Equals(-(2**63))),
    Clause("count", InRange(at_least=0)),
    Clause("weight", InRange(at_least=0.25, below=0.75)),
    Clause("weight", Exists(False)),
    Clause("seen", Equals(True)),
    Not(Clause("seen", Equals(False))),
    Clause("at", InRange(below=START + timedelta(hours=2))),
    Clause("at", Equals(START)),
)


# -- texts ----------------------------------------------------------------------------------------


def test_texts_come_back_by_their_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_PIECE", 3)
    monkeypatch.setattr(texts, "_COPY", 1_000)
    kept = Texts()
    said = [b"", b"a", "grün".encode(), b"x" * 255, b"y" * 256, b"z" * MAX_BYTES, b"a"] * 2
    handles = np.concatenate([kept.append(said[:5]), kept.append([]), kept.append(said[5:])])
    assert [kept.at(handle) for handle in handles.tolist()] == said
    chosen, others = handles[[1, 3, 8, 13]], handles[[3, 0]]
    content, (first, second) = kept.copied(chosen, others)
    copied = Texts(content.tobytes())
    assert [copied.at(h) for h in first.tolist()] == [said[n] for n in (1, 3, 8, 13)]
    assert [copied.at(h) for h in second.tolist()] == [said[n] for n in (3, 0)]
    assert copied.nbytes == sum(2 + len(said[n]) for n in (0, 1, 3, 8, 13))  # each once
    (more,) = copied.append([b"more"]).tolist()
    assert copied.at(more) == b"more"
    assert [copied.at(h) for h in first.tolist()] == [said[n] for n in (1, 3, 8, 13)]


def test_of_no_texts_nothing_is_copied() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    content, (first, second) = Texts().copied(nobody, nobody)
    assert (len(content), len(first), len(second)) == (0, 0, 0)


# -- saved and restored ---------------------------------------------------------------------------


def facts(rng: np.random.Generator) -> dict[str, MetadataValue]:
    everything: dict[str, MetadataValue] = {
        "colour": ("grün", "rot", "blau", "")[rng.integers(4)],
        "count": (-(2**63), 0, 2**63 - 1)[rng.integers(3)],
        "weight": float(rng.integers(5)) / 4,
        "seen": bool(rng.integers(2)),
        "at": START + timedelta(hours=int(rng.integers(4))),
    }
    return {key: value for key, value in everything.items() if rng.random() < 0.7}


def filled(rng: np.random.Generator, count: int) -> Rows:
    """Rows of items, a third of them replaced and a third removed; hung as a gallery hangs them."""
    memory = Memory(settings(), 64)
    mine = memory._rows
    numbers = np.arange(1, count + 1)
    for chosen in (numbers, numbers[::3]) if count else ():
        old = mine.rows_of(chosen)
        there = old[old != NOTHING]
        memory._add(rng.normal(size=(len(chosen), 4)).astype(np.float32), chosen.astype(np.uint64))
        labels = np.arange(mine.count, mine.count + len(chosen))
        fresh = mine.append(
            NewRows(
                numbers=chosen,
                ids=[f"i{n}".encode() for n in chosen],
                id_at=np.full(len(chosen), NOTHING),
                subjects=[b"" if rng.random() < 0.2 else b"s%d" % rng.integers(9) for _ in chosen],
                labels=labels,
                metadata=[facts(rng) for _ in chosen],
            )
        )
        memory._hang(fresh, labels)
        if len(there):
            memory._let_go(mine.kill(there, 2))
    memory._let_go(mine.kill(mine.rows_of(numbers[1::3]), 3))
    return mine


def said(view: RowsView) -> dict[str, object]:
    """Everything that a view says of each item, by id."""
    live = view.live_rows
    passing = [view.passing(wanted) for wanted in FILTERS]
    found: dict[str, object] = {}
    for row in live.tolist():
        subject = view.subjects.name_of(int(view.subject[row]))
        found[view.id_of(row)] = (
            int(view.number[row]),
            int(view.label[row]),
            view.subject_of(row),
            subject,
            sorted(view.id_of(other) for other in view.of_subject(subject).tolist()),
            int(view.subjects.items[view.subject[row]]),
            [bool(mask[row]) for mask in passing],
        )
    assert (view.item_count, view.subject_count) == (len(found), view.count_subjects(live))
    return found


@pytest.mark.parametrize("count", [0, 1, 100])
def test_rows_with_keys_of_every_type_come_back(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "PIECE", 7)
    mine = filled(np.random.default_rng(count), count)
    view = mine.view(ALIVE - 1, 0)
    expected = said(view)
    for _ in range(2):  # and those that came back, once more
        again = Rows.restored(dict(KEYS), view.saved())
        view = again.view(ALIVE - 1, 0)
        assert said(view) == expected
        assert (again.count, again.dead) == (len(expected), 0)
    fresh = again.append(
        NewRows(
            numbers=np.array([10_000]),
            ids=[b"fresh"],
            id_at=np.array([NOTHING]),
            subjects=[b"s1"],
            labels=np.array([7]),
            metadata=[{"colour": "neu", "count": 4}],
        )
    )
    view = again.view(ALIVE - 1, 0)
    assert view.passing(Clause("colour", Equals("neu")))[fresh].all()
    assert view.passing(Clause("colour", Equals("neu"))).sum() == 1
    assert view.id_of(int(view.of_subject("s1")[-1])) == "fresh"


def test_names_with_one_digest_stay_apart_also_when_the_first_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "_name_key", len)
    monkeypatch.setattr(rows, "_next_key", lambda key: key + 1)
    mine = Rows({})
    names = [b"aa", b"bb", b"cc", b"ddd", b"ee", b"ffff", b"gg", b"hhh"]

    def add(numbers: list[int], chosen: list[bytes], to: Rows) -> None:
        to.append(
            NewRows(
                numbers=np.array(numbers),
                ids=[b"i%d" % number for number in numbers],
                id_at=np.full(len(numbers), NOTHING),
                subjects=chosen,
                labels=np.array(numbers),
                metadata=[{}] * len(numbers),
            )
        )

    def check(of: Rows, subjects: dict[int, bytes]) -> None:
        view = of.view(ALIVE - 1, 0)
        for name in (*names, b"unknown"):
            ids = [view.id_of(row) for row in view.of_subject(name.decode()).tolist()]
            assert ids == [f"i{n}" for n, subject in subjects.items() if subject == name]
        assert view.subject_count == len(set(subjects.values()))

    held = dict(enumerate(names, 1))
    add(list(range(1, 5)), names[:4], mine)
    add(list(range(5, 9)), names[4:], mine)
    check(mine, held)
    for gone in (1, 4, 2, 6):
        mine.kill(mine.rows_of(np.array([gone])), 5)
        del held[gone]
        check(mine, held)
        mine = Rows.restored({}, mine.view(ALIVE - 1, 0).saved())
        check(mine, held)
    back = {20: b"aa", 21: b"bb", 22: b"cc", 23: b"gg"}
    add(list(back), list(back.values()), mine)
    check(mine, held | back)
    check(Rows.restored({}, mine.view(ALIVE - 1, 0).saved()), held | back)


def test_a_subject_whose_name_is_being_added_does_not_disturb_who_saves() -> None:
    """The writer notes a code as moved before it counts it."""
    mine = filled(np.random.default_rng(3), 30)
    view = mine.view(ALIVE - 1, 0)
    expected = said(view)
    mine.subjects.moved.append(mine.subjects.count)
    assert said(Rows.restored(dict(KEYS), view.saved()).view(ALIVE - 1, 0)) == expected
    assert isinstance(mine.subjects, Subjects)


# -- the dead are left behind ---------------------------------------------------------------------


def found_in(view: View, probes: np.ndarray) -> list[object]:
    answer: list[object] = []
    for question in (Question(5, exact=True), Question(9, by_subject=False, exact=True)):
        found, items, subjects = search(view, Probes(probes, view.metric), question, None, 10)
        ids = [view.rows.id_of(row) for row in found.rows.tolist()]
        names = [view.rows.subject_of(row) for row in found.rows.tolist()]
        answer += [ids, names, found.distances.tolist(), items, subjects]
    wanted = Clause("count", InRange(below=40))
    found, items, subjects = search(view, Probes(probes, view.metric), Question(5), wanted, 10)
    answer += [[view.rows.id_of(row) for row in found.rows.tolist()], items, subjects]
    answer.append(sorted(view.rows.id_of(row) for row in view.rows.of_subject("s3").tolist()))
    return answer


def churn(gallery: Gallery, rng: np.random.Generator, turns: int) -> dict[str, np.ndarray]:
    known: dict[str, np.ndarray] = {}
    for turn in range(turns):
        items = []
        for number in rng.choice(60, 20, replace=False).tolist():
            known[f"i{number}"] = rng.normal(size=4).astype(np.float32)
            count = {"count": number, "colour": "rgb"[number % 3]}
            items.append(new(f"i{number}", known[f"i{number}"], f"s{number % 7}", count))
        gallery.enroll(items).result()
        if turn % 3 == 2:
            gone = [f"i{n}" for n in rng.choice(60, 5, replace=False)]
            gallery.remove(ids=gone).result()
            for item_id in gone:
                known.pop(item_id, None)
        if turn % 5 == 4:
            gallery.rename("s3", "s4", merge=True).result()
            gallery.move("s3", ids=sorted(known)[:4]).result()
    return known


def test_old_views_answer_as_before_when_the_dead_are_left_behind(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_COMPACT_ROWS", 50)
    rng = np.random.default_rng(6)
    probes = rng.normal(size=(6, 4)).astype(np.float32)
    left = 0
    leave = Memory._leave_the_dead

    def counting(memory: Memory) -> None:
        nonlocal left
        left += 1
        leave(memory)

    monkeypatch.setattr(Memory, "_leave_the_dead", counting)
    held: list[tuple[View, list[object]]] = []
    with one_gallery(quick_folder, settings(), SMALL) as gallery:
        for _ in range(8):
            known = churn(gallery, rng, 5)
            for view, before in held:
                assert found_in(view, probes) == before
            held.append((gallery.view, found_in(gallery.view, probes)))
            own = gallery.search(np.stack(list(known.values())), k=1, by_subject=False, exact=True)
            assert [item.decode() for item in own.ids] == list(known)
        assert left > 3
        assert gallery.view.rows.count < 2 * 60 + 2 * 50
        expected = found_in(gallery.view, probes)
    with opened(quick_folder, SMALL) as galleries:
        assert found_in(galleries.get("faces").view, probes) == expected


def test_who_lives_is_known_also_while_the_dead_are_being_left(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder asks at any time, and makes segments of those who live."""
    monkeypatch.setattr(rows, "_COMPACT_ROWS", 50)
    asked = 0
    hang_all = Memory._hang_all

    def asking(memory: Memory) -> None:
        nonlocal asked
        view = gallery.view
        segments = [part.segment for part in memory.parts]
        if segments:
            living = set(gallery.living(segments).tolist())
            wanted = {label for segment in segments for label in segment.labels.tolist()}
            wanted &= set(memory._rows.label[: memory._rows.count].tolist())
            assert wanted <= living
            asked += bool(wanted) and view.sequence > 0
        hang_all(memory)

    monkeypatch.setattr(Memory, "_hang_all", asking)
    limits = GalleryLimits(exact_scan_below=10_000, segment_rows=16)
    with one_gallery(quick_folder, settings(), limits) as gallery:
        churn(gallery, np.random.default_rng(8), 40)
        # A fault here is met by reading the store anew, which would hide it.
        assert asked > 2
        assert not gallery._failed
