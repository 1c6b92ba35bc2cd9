"""Backup, export and import as a user types them, killed in the middle and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import RunningServer, start
from twinserve.client import Client, EnrollItem, Vector

COUNT = 2_000
PATIENCE = 60.0
KEYS = {"site": "text", "age": "integer", "weight": "number", "seen": "flag", "at": "time"}

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def server(twin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("files")
    flags = ("--data-dir", folder / "data", "--backup-dir", folder / "backups")
    running = start("--model", twin_file, *flags)
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    """A client of a server with one filled gallery, `people`."""
    rng = np.random.default_rng(11)
    with Client(server.target) as client:
        made = client.create_gallery(
            "people", metadata_keys=KEYS, metric="cosine", max_bytes=1 << 30
        )
        for first in range(0, COUNT, 1_000):
            client.enroll(
                "people",
                [
                    EnrollItem(
                        Vector(rng.normal(size=16).astype(np.float32), made.space_id),
                        f"i{n:05}",
                        f"s{n % 100}",
                        metadata_of(n),
                    )
                    for n in range(first, first + 1_000)
                ],
            ).checked()
        yield client


def metadata_of(n: int) -> dict[str, Any]:
    known = {
        "site": f"größe {n}",
        "age": 2**53 + n,
        "weight": n / 7,
        "seen": n % 2 == 0,
        "at": datetime(2024, 1, 2, 3, 4, 5, n, UTC),
        "free": n,
        "number": float(n),
    }
    return {key: value for place, (key, value) in enumerate(known.items()) if n % 11 != place}


def command(server: RunningServer, *arguments: object) -> dict[str, Any]:
    return {
        "args": [sys.executable, "-m", "twinserve.cli", "gallery", *map(str, arguments)],
        "env": {**os.environ, "TWINSERVE_TARGET": server.target},
        "text": True,
    }


def run(server: RunningServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(server, *arguments), capture_output=True, timeout=120)


def killed_when(
    reached: Callable[[], bool], server: RunningServer, *arguments: object
) -> subprocess.Popen[str]:
    process = subprocess.Popen(**command(server, *arguments), stderr=subprocess.PIPE)
    until = time.monotonic() + PATIENCE
    while not reached() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -9, f"it was done before it was killed: {said}"
    return process


def content(client: Client, name: str) -> dict[str, tuple[Any, ...]]:
    return {
        item.id: (
            item.subject,
            {key: (type(value), value) for key, value in item.metadata.items()},
            vector.tobytes(),
        )
        for batch in client.export_items(name)
        for item, vector in zip(batch.items, batch.embeddings, strict=True)
    }


def test_a_gallery_comes_back_bit_for_bit_though_both_ways_were_killed(
    client: Client, server: RunningServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed_when((out / "part-00002.parquet").exists, server, "export", "people", out, "--rows", 20)
    assert not json.loads((out / "gallery.json").read_text())["complete"]
    exported = run(server, "export", "people", out, "--rows", 20)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith(f"people: {COUNT} items in 100 files of {out}, ")
    assert "by an earlier run" in exported.stdout

    def begun() -> bool:
        galleries = {one.name: one.item_count for one in client.list_galleries()}
        return galleries.get("again", 0) >= 100

    killed_when(begun, server, "import", "again", out, "--create", "--batch", 20)
    assert client.get_gallery("again").item_count < COUNT
    imported = run(server, "import", "again", out, "--batch", 20)
    assert imported.returncode == 0, imported.stderr
    original, again = client.get_gallery("people"), client.get_gallery("again")
    for name in ("metric", "dimension", "metadata_keys", "max_bytes", "hnsw", "space_id"):
        assert getattr(again, name) == getattr(original, name)
    assert content(client, "again") == content(client, "people")
    assert not list(out.glob(".*"))
    unchanged = run(server, "import", "again", out, "--json")
    assert json.loads(unchanged.stdout) == {
        "rows": COUNT,
        "skipped": 0,
        "changes": {"unchanged": COUNT},
    }
    client.delete_gallery("again")


def test_rows_of_others_are_enrolled_and_bad_ones_named(
    client: Client, server: RunningServer, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.parquet"
    vectors = np.random.default_rng(2).normal(size=(10, 16))
    pq.write_table(pa.table({"embedding": vectors.tolist(), "colour": ["red"] * 10}), path)
    imported = run(server, "import", "theirs", path, "--create")
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout == "theirs: 10 created\n"
    found = content(client, "theirs").values()
    assert [vector for *_, vector in found] == [v.astype("<f4").tobytes() for v in vectors]
    assert all(metadata == {"colour": (str, "red")} for _, metadata, _ in found)
    client.delete_gallery("theirs")

    vectors[6] = np.nan
    pq.write_table(pa.table({"embedding": vectors.tolist()}), path)
    refused = run(server, "import", "people", path)
    assert refused.returncode == 2
    assert f"{path}, row 7: the embedding holds a NaN" in refused.stderr
    assert refused.stderr.count("\n") == 1
    pq.write_table(pa.table({"embedding": [[1.0, 2.0]]}), path)
    refused = run(server, "import", "people", path)
    assert "embeddings of 2 values, and gallery 'people' takes 16" in refused.stderr
    assert client.get_gallery("people").item_count == COUNT


def test_a_backup_is_made_on_the_server_and_said_where(
    client: Client, server: RunningServer
) -> None:
    made = run(server, "backup", "monday", "people")
    assert made.returncode == 0, made.stderr
    assert "MB copied to " in made.stdout
    path = Path(made.stdout.split(" copied to ")[1].removesuffix(" on the server\n"))
    assert (path / "catalog.db").exists()
    again = run(server, "backup", "monday")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "monday" in again.stderr


def test_a_gallery_is_bounded_in_sizes_as_people_write_them(
    client: Client, server: RunningServer
) -> None:
    for text, size in (("10GiB", 10 << 30), ("2M", 2 << 20), ("1048576", 1 << 20)):
        made = run(server, "create", "bounded", "--max-bytes", text, "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["max_bytes"] == size
        client.delete_gallery("bounded")
    refused = run(server, "create", "bounded", "--max-bytes", "many")
    assert refused.returncode == 2
    assert "many is no size" in refused.stderr
