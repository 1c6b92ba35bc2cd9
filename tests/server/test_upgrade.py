"""A server of this code, started on what earlier releases left on disk (fixtures/upgrade)."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import RunningServer, start
from tests.fixtures.upgrade import make
from twinserve import manifest
from twinserve.client import Client
from twinserve.errors import StoreDamaged
from twinserve.messages import EnrollItem
from twinserve.server.storage.data_folder import DataFolder

FIXTURES = Path(make.__file__).parent
RELEASES = sorted(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob("*.tar.xz"))
# As far as another build of the runtime may round: far below any threshold's steps.
CLOSE = 1e-5


@dataclass
class Upgraded:
    """A server of this code on the files of an earlier release, and what that release answered."""

    folder: Path
    said: dict[str, Any]
    server: RunningServer


@pytest.fixture(scope="module", params=RELEASES)
def upgraded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgraded]:
    folder = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    said = json.loads((folder / "expected.json").read_text())
    models = folder / "models"
    server = start(
        *("--data-dir", folder / "data", "--model-dir", models, "--model", models / "people.onnx"),
        *("--runners", "1", "--threads", "1"),  # nothing is measured at the start
    )
    yield Upgraded(folder, said, server)
    server.kill()


def test_a_twin_and_a_gallery_of_an_earlier_release_answer_as_they_did(upgraded: Upgraded) -> None:
    said = upgraded.said
    with Client(upgraded.server.target) as client:
        now = make.answers(client)
    assert manifest.read(upgraded.folder / "models/people.onnx").schema == said["schema"]
    for exactly in ("space_id", "items", "subject_of_i20", "metadata_of_i20", "count"):
        assert now[exactly] == said[exactly]
    np.testing.assert_allclose(now["embeddings"], said["embeddings"], atol=CLOSE)
    for (distance, outcome), (before, decided) in zip(
        now["compared"], said["compared"], strict=True
    ):
        assert outcome == decided
        assert distance == pytest.approx(before, abs=CLOSE)
    item, distance, outcome = said["verified"]
    assert now["verified"] == [item, pytest.approx(distance, abs=CLOSE), outcome]
    for hits, before in zip(now["searched"], said["searched"], strict=True):
        assert [item for item, _ in hits] == [item for item, _ in before]
        assert [far for _, far in hits] == pytest.approx([far for _, far in before], abs=CLOSE)


def test_aliases_and_loaded_models_of_an_earlier_release_are_there(upgraded: Upgraded) -> None:
    aliases = upgraded.said["aliases"]
    if not aliases:
        pytest.skip("that release had none")
    with Client(upgraded.server.target) as client:
        assert client.get_gallery(aliases["gallery"]).name == "people"
        assert client.model(aliases["model"]).name == "again"


def test_writes_go_on(upgraded: Upgraded) -> None:
    (picture,) = make.pictures(80)[79:]
    with Client(upgraded.server.target) as client:
        client.enroll("people", [EnrollItem(picture, id="later", subject="s1")])
        client.remove("people", ids=["i00"])
        (hits,) = client.search("people", [picture], top_k=1, by_item=True)
        assert hits[0].item.id == "later"
        ids = {item.id for item in client.list_items("people")}
        assert ids == set(upgraded.said["items"]) - {"i00"} | {"later"}
    assert upgraded.server.stop() == 0


def test_a_data_folder_of_a_later_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    DataFolder(tmp_path).close()
    catalogue = tmp_path / "catalog.db"
    with closing(sqlite3.connect(catalogue)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreDamaged, match=r"newer twinserve .* 99, .* start that release again"):
        DataFolder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"lock", "catalog.db"}
