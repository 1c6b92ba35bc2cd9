"""Items as Parquet: what is written comes back, and what others wrote is read or refused by row."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinserve import arrow, parquet
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError
from twinserve.messages import Gallery, Item

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

KEYS = {"site": "text", "age": "integer", "weight": "number", "seen": "flag", "at": "time"}
AT = datetime(2024, 5, 6, 7, 8, 9, 123457, UTC)
ABOUT = {"space_id": "space", "dimension": 3}


def gallery(**keys: str) -> Gallery:
    return Gallery("g", "twin", "space", 3, Metric.EUCLIDEAN, keys or KEYS, 0, 4, 4, 0, AT)


ITEMS = [
    Item("a", "", {}, AT, AT),
    Item("b", "süd", {"site": "x", "age": -(2**63), "weight": math.pi, "seen": False}, AT, AT),
    Item("c", "s", {"at": datetime(1, 1, 1, tzinfo=UTC), "age": 2**63 - 1, "seen": True}, AT, AT),
    Item(
        "d",
        "s",
        {
            "free": 'é"\n',
            "whole": 2**53 + 1,
            "real": 1.0,
            "yes": True,
            "when": AT.astimezone(timezone(timedelta(hours=5))),
            "site": "",
        },
        AT,
        AT + timedelta(microseconds=1),
    ),
]
VECTORS = np.array([[1, 2, 3], [-0.0, 1e-45, 3.4e38], [0.1, 0.2, 0.3], [5, 6, 7]], dtype=np.float32)


def written(folder: Path, keys: dict[str, str] = KEYS, items: list[Item] = ITEMS) -> Path:
    path = folder / "part-00000.parquet"
    part = parquet.PartWriter(path, gallery(**keys), ABOUT)
    part.write(items[:3], VECTORS[:3])
    part.write(items[3:], VECTORS[3:])
    assert not path.exists(), "nothing half written looks like a part"
    part.close()
    assert [one.name for one in folder.iterdir()] == [path.name]
    return path


def read(path: Path, first: int = 0, size: int = 2, dimension: int = 3) -> list[parquet.Rows]:
    with contextlib.closing(parquet.ItemFile(path)) as file:
        return list(file.read(first, size, dimension))


def foreign(folder: Path, **columns: Any) -> Path:
    path = folder / "theirs.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def lists(*rows: Any, kind: Any = None) -> Any:
    return pa.array(rows, pa.list_(kind or pa.float32()))


def test_what_is_written_comes_back_bit_for_bit_with_its_types(tmp_path: Path) -> None:
    path = written(tmp_path)
    batches = read(path)
    rows = [
        (*row, vector.tobytes())
        for batch in batches
        for *row, vector in zip(
            batch.ids, batch.subjects, batch.metadata, batch.embeddings, strict=True
        )
    ]
    assert rows == [
        (item.id, item.subject, item.metadata, vector.tobytes())
        for item, vector in zip(ITEMS, VECTORS, strict=True)
    ]
    for (_, _, metadata, _), item in zip(rows, ITEMS, strict=True):
        assert {k: type(v) for k, v in metadata.items()} == {
            k: type(v) for k, v in item.metadata.items()
        }
    with contextlib.closing(parquet.ItemFile(path)) as file:
        assert (file.rows, file.dimension, file.space_id, file.about) == (4, 3, "space", ABOUT)
    assert parquet.last_id(path) == "d"


@pytest.mark.parametrize("first", range(5))
def test_reading_goes_on_from_any_row(tmp_path: Path, first: int) -> None:
    batches = read(written(tmp_path), first)
    assert [item_id for batch in batches for item_id in batch.ids] == list("abcd")[first:]
    for batch in batches:
        assert batch.ids == list("abcd")[batch.first : batch.first + len(batch)]


def test_other_tools_find_typed_columns(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path))
    kinds = {name: str(table.schema.field(name).type) for name in table.schema.names}
    assert kinds == {
        "id": "string",
        "subject": "string",
        "create_time": "timestamp[us, tz=UTC]",
        "update_time": "timestamp[us, tz=UTC]",
        "site": "string",
        "age": "int64",
        "weight": "double",
        "seen": "bool",
        "at": "timestamp[us, tz=UTC]",
        "metadata": "string",
        "embedding": "fixed_size_list<element: float not null>[3]",
    }
    assert table["create_time"].to_pylist() == [AT] * 4
    assert table["update_time"].to_pylist()[3] == AT + timedelta(microseconds=1)
    assert table["site"].to_pylist() == [None, "x", None, ""]
    rest = json.loads(table["metadata"].to_pylist()[3])
    assert ["whole", "i", 2**53 + 1] in rest
    assert ["real", "n", 1.0] in rest


def test_a_key_named_like_a_column_of_ours_has_another(tmp_path: Path) -> None:
    keys = {"id": "text", "id_": "integer", "metadata": "text", "embedding": "flag"}
    items = [
        Item(item.id, "", {"id": "mine", "id_": 3, "metadata": "{}", "embedding": True}, AT, AT)
        for item in ITEMS
    ]
    path = written(tmp_path, keys, items)
    assert {"id", "id__", "id_", "metadata_", "embedding_"} <= set(pq.read_schema(path).names)
    assert [batch.metadata for batch in read(path, size=9)] == [[item.metadata for item in items]]


def test_a_part_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    part = parquet.PartWriter(tmp_path / "part-00000.parquet", gallery(), ABOUT)
    part.write(ITEMS, VECTORS)
    part.drop()
    assert not list(tmp_path.iterdir())


def test_only_embeddings_are_needed_and_ids_follow_from_the_content(tmp_path: Path) -> None:
    path = foreign(tmp_path, embedding=lists([1, 2, 3], [4, 5, 6], [7, 8, 9]))
    first = read(path)
    assert [list(batch.embeddings[0]) for batch in first] == [[1, 2, 3], [7, 8, 9]]
    ids = [item_id for batch in first for item_id in batch.ids]
    assert len(set(ids)) == 3
    assert ids == [item_id for batch in read(path, size=1) for item_id in batch.ids]
    other = foreign(tmp_path, embedding=lists([1, 2, 3], [4, 5, 6], [7, 8, 8]))
    assert set(ids).isdisjoint(item_id for batch in read(other) for item_id in batch.ids)


def test_columns_of_others_are_metadata(tmp_path: Path) -> None:
    path = foreign(
        tmp_path,
        id=pa.array(["x", "y"]).dictionary_encode(),
        embedding=lists([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], kind=pa.float64()),
        subject=["s", None],
        site=pa.array(["a", None]).dictionary_encode(),
        age=pa.array([3, None], pa.uint8()),
        weight=pa.array([0.5, None], pa.float32()),
        seen=[True, None],
        at=pa.array([AT.replace(tzinfo=None), None], pa.timestamp("us")),
        metadata=["free text", None],
        create_time=pa.array([AT, None], pa.timestamp("ns", "Europe/Berlin")),
        nothing=pa.nulls(2),
        __index_level_0__=[1, 2],
    )
    (rows,) = read(path)
    assert rows.ids == ["x", "y"]
    assert rows.subjects == ["s", ""]
    assert rows.metadata == [
        {
            "site": "a",
            "age": 3,
            "weight": 0.5,
            "seen": True,
            "at": AT,
            "metadata": "free text",
            "create_time": AT,
        },
        {},
    ]
    assert rows.embeddings.dtype == np.float32
    assert rows.embeddings[1].tolist() == np.array([0.1, 0.2, 0.3], np.float32).tolist()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": ["a"]}, "has the columns id; it needs embedding"),
        ({"embedding": [1.0]}, "column embedding holds double; write lists of float32"),
        ({"embedding": lists([1, 2, 3], kind=pa.int32())}, "write lists of float32"),
        ({"embedding": lists([1, 2, 3]), "id": [7]}, "column id holds int64; write it as text"),
        ({"embedding": lists([1, 2, 3]), "tags": [["a"]]}, "'tags' holds list"),
        ({"embedding": lists([1, 2, 3]), "n": pa.array([2**64 - 1], pa.uint64())}, "beyond 64"),
        (
            {"embedding": lists([1, 2, 3]), "at": pa.array([1], pa.timestamp("ns"))},
            "finer than a microsecond",
        ),
        ({"embedding": lists([1, 2, 3], [4, 5, 6], [1, 2])}, "row 3: the embedding has 2 values"),
        ({"embedding": lists([1, 2, 3], [4, 5, 6], None)}, "row 3: the embedding is missing"),
        ({"embedding": lists([1, 2, 3], [4, 5, 6], [1, 2, None])}, "row 3: a value"),
        ({"embedding": lists([1, 2, 3], [4, 5, 6], [1, 2, math.nan])}, "row 3: .* NaN"),
        ({"embedding": lists([1, 2, 3], [math.inf, 5, 6])}, "row 2: .* infinite"),
        ({"embedding": lists([1, 2, 3], [1e39, 5, 6], kind=pa.float64())}, "row 2: .* float32"),
        ({"embedding": lists([1, 2, 3], [4, 5, 6]), "id": ["a", None]}, "row 2: the id is missing"),
    ],
)
def test_what_cannot_be_enrolled_is_named_by_column_or_row(
    tmp_path: Path, columns: dict[str, Any], says: str
) -> None:
    path = foreign(tmp_path, **columns)
    with pytest.raises(DataError, match=says) as refused:
        read(path)
    assert str(path) in refused.value.message


def test_missing_vectors_of_fixed_size_are_named_by_row(tmp_path: Path) -> None:
    kind = pa.list_(pa.float32(), 3)
    path = foreign(tmp_path, embedding=pa.array([[1, 2, 3]] * 4 + [None, [4, 5, 6]], kind))
    with pytest.raises(DataError, match="row 5: the embedding is missing"):
        read(path, first=1)
    with contextlib.closing(parquet.ItemFile(path)) as file:
        assert file.dimension == 3


def test_a_file_that_is_no_parquet_or_half_of_one_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    for call in (parquet.ItemFile, parquet.last_id):
        with pytest.raises(DataError, match=r"part-00000\.parquet"):
            call(path)


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(arrow.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'twinserve\[parquet\]'"):
        arrow.arrow()
