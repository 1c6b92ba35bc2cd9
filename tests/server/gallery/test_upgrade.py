"""A store of an earlier server is brought up to date at the start, and holds what it held."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from tests.server.gallery.folders import new, opened, settings

# What version 2 brought, undone: this is a file of version 1.
_BACK_TO_1 = """
DROP TABLE changes;
DELETE FROM state WHERE key NOT IN ('sequence', 'next_number');
DROP INDEX items_by_subject;
CREATE INDEX items_by_subject ON items(subject) WHERE subject != '';
PRAGMA user_version = 1;
"""


def test_a_store_of_version_1_is_brought_up_to_date_with_all_it_holds(tmp_path: Path) -> None:
    with opened(tmp_path) as galleries:
        galleries.create(settings())
        gallery = galleries.get("faces")
        outcome = gallery.enroll(
            [new(f"i{n}", [n, 0, 0, 0], f"s{n % 3}") for n in range(30)]
        ).result()
        token = outcome.token
    (path,) = tmp_path.glob("galleries/*/store.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(_BACK_TO_1)
    with opened(tmp_path) as galleries:
        gallery = galleries.get("faces")
        gallery.wait_for(token, 0.0)
        listed, _ = gallery.list_items(limit=100, subject="s1")
        assert [item.id for item in listed] == sorted(f"i{n}" for n in range(1, 30, 3))
        (hits,) = gallery.search(np.zeros((1, 4), dtype=np.float32), k=1).results
        assert hits.hits[0].item_id == "i0"
        gallery.enroll([new("later", [50, 0, 0, 0])]).result()
        assert [(one.first, one.last) for one in gallery.store.changed_after(1)] == [(31, 31)]
        assert gallery.store.changes_since == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2
        index = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'items_by_subject'")
        assert "(subject, id)" in index.fetchone()[0]
    with opened(tmp_path) as galleries:
        assert galleries.status("faces").item_count == 31
