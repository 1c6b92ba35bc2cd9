"""Changes of what is served, without a server: what is checked, remembered and restored."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import twins
from twinserve import manifest as manifests
from twinserve.errors import (
    ConfigError,
    EmptyInput,
    FailedPrecondition,
    InvalidInput,
    ManifestError,
    ModelNotFound,
    NotFound,
    Unavailable,
)
from twinserve.server.config import ModelSpec
from twinserve.server.models.changes import ModelChanges
from twinserve.server.models.holding import Models
from twinserve.server.models.loading import digest_of
from twinserve.server.models.records import ModelRecords
from twinserve.server.models.table import Bound, Origin, Served
from twinserve.server.storage import data_folder

# catalog.db as servers before this one made it, without and with the table that came later.
OLD_FORM = """
PRAGMA application_id = 1951877454;
CREATE TABLE galleries(
    name TEXT PRIMARY KEY, folder TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
    created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests(
    id TEXT PRIMARY KEY, settings TEXT NOT NULL, created INTEGER NOT NULL, at INTEGER NOT NULL);
INSERT INTO galleries VALUES ('people', 'f00', '{}', 7);
PRAGMA user_version = 1;
"""
OLD_DELETED = "CREATE TABLE deleted(folder TEXT PRIMARY KEY) WITHOUT ROWID;"
# What version 2 has beyond these.
SECOND_FORM = """
CREATE TABLE models(
    name TEXT NOT NULL, version TEXT NOT NULL, file TEXT NOT NULL, digest TEXT NOT NULL,
    loaded INTEGER NOT NULL, PRIMARY KEY (name, version)) WITHOUT ROWID;
CREATE TABLE aliases(
    alias TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO models VALUES ('small', '2', 'v2.onnx', 'd', 5);
INSERT INTO aliases VALUES ('live', 'small', '2');
PRAGMA user_version = 2;
"""


class Batches:
    """What is asked of an engine's batcher."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class House:
    """A folder of twins and a catalogue, and the changes made over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.twins = root / "models"
        self.twins.mkdir(exist_ok=True)
        self.loads: list[str] = []
        self.forgotten: list[str] = []
        self.galleries: list[Bound] = []
        self.before_load: Callable[[], None] = lambda: None
        self.file = data_folder.Catalog(root / "catalog.db")
        self.base = ModelSpec(self.put("v1.onnx"))
        self.restart(self.base)

    def make(self, model_dir: Path | None = None, patience: float = 5.0) -> ModelChanges:
        return ModelChanges(
            self.models,
            self.load,
            ModelRecords(self.file),
            lambda: self.galleries,
            model_dir or self.twins,
            self.forgotten.append,
            patience,
        )

    def load(self, path: Path, name: str, file: str) -> Served:
        self.before_load()
        manifest = manifests.read(path)
        self.loads.append(path.name)
        name = name or manifest.name
        engine: Any = SimpleNamespace(
            name=name,
            version=f"{name}@{manifest.version}",
            manifest=manifest,
            spaces={manifest.space_id: manifest.dimension},
            batcher=Batches(),
            mirror=None,
        )
        return Served(engine, Origin(path, digest_of(path), file, 0.1))

    def put(self, file: str, version: str = "1", **settings: Any) -> Path:
        path = self.twins / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(twins.small_image_twin(version=version, calibrated=False, **settings))
        return path

    def restart(self, *specs: ModelSpec, forget: bool = False) -> None:
        self.models = Models()
        self.loads.clear()
        self.changes = self.make()
        self.changes.start(specs, forget=forget)

    def served(self) -> list[str]:
        return [engine.version for engine in self.models]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.loads.clear()
    yield made
    made.file.close()


def test_a_loaded_version_answers_to_its_name_and_its_aliases_at_once(house: House) -> None:
    house.put("sub/v2.onnx", "2")
    held = house.changes.load("sub/v2.onnx", aliases=["live", "canary"])
    assert held.engine.version == "small@2"
    assert {house.models.resolve(name).version for name in ("small", "live", "canary", "")} == {
        "small@2"
    }
    assert house.models.resolve("small@1").version == "small@1"
    assert house.models.table.aliases_of("small@2") == ("canary", "live")


def test_the_same_content_is_loaded_once_and_other_content_is_refused(house: House) -> None:
    house.put("v2.onnx", "2")
    first = house.changes.load("v2.onnx")
    assert house.changes.load("v2.onnx", aliases=["live"]) is first
    assert house.loads == ["v2.onnx"]
    assert house.models.resolve("live") is first.engine
    house.put("other.onnx", "2", seed=9)
    with pytest.raises(FailedPrecondition, match=r"small@2 is served already, from v2\.onnx"):
        house.changes.load("other.onnx")
    assert house.changes.load("other.onnx", "second").engine.version == "second@2"


def test_a_load_that_fails_leaves_everything_as_it_was(house: House) -> None:
    (house.twins / "broken.onnx").write_bytes(b"not a model")
    before = house.models.table
    with pytest.raises(ManifestError) as refused:
        house.changes.load("broken.onnx", aliases=["live"])
    assert "broken.onnx" in refused.value.message
    assert str(house.twins) not in refused.value.message
    assert house.models.table is before


@pytest.mark.parametrize(
    ("file", "error", "says"),
    [
        ("", EmptyInput, "file is empty"),
        ("../v1.onnx", InvalidInput, "without \\.\\."),
        ("sub/../../v1.onnx", InvalidInput, "without \\.\\."),
        ("/etc/passwd", InvalidInput, "not a path below the model folder"),
        ("v1\0.onnx", InvalidInput, "not a path below"),
        ("out.onnx", InvalidInput, "leads out of the model folder"),
        ("away/secret.onnx", InvalidInput, "leads out of the model folder"),
        ("loop.onnx", NotFound, "no file 'loop.onnx'"),
        ("none.onnx", NotFound, "no file 'none.onnx'"),
        ("sub", NotFound, "no file 'sub'"),
        ("v1.onnx/x", NotFound, "no file"),
        ("a" * 5000, NotFound, "no file"),
    ],
)
def test_nothing_outside_the_model_folder_is_loaded(
    house: House, file: str, error: type[Exception], says: str
) -> None:
    outside = house.root / "outside"
    outside.mkdir()
    (outside / "secret.onnx").write_bytes(house.base.path.read_bytes())
    (house.twins / "out.onnx").symlink_to(outside / "secret.onnx")
    (house.twins / "away").symlink_to(outside)
    (house.twins / "loop.onnx").symlink_to(house.twins / "loop.onnx")
    (house.twins / "sub").mkdir()
    with pytest.raises(error, match=says) as refused:
        house.changes.load(file)
    assert refused.value.field == "file"
    assert str(house.root) not in str(refused.value)
    assert house.loads == []


def test_a_link_that_stays_inside_the_folder_is_followed(house: House) -> None:
    house.put("v2.onnx", "2")
    (house.twins / "current.onnx").symlink_to("v2.onnx")
    assert house.changes.load("current.onnx").engine.version == "small@2"


def test_without_a_model_folder_nothing_is_loaded(house: House) -> None:
    changes = ModelChanges(
        house.models, house.load, ModelRecords(house.file), list, None, house.forgotten.append
    )
    with pytest.raises(FailedPrecondition, match="without --model-dir"):
        changes.load("v1.onnx")


def test_a_model_folder_that_is_none_refuses_the_start(house: House) -> None:
    with pytest.raises(ConfigError, match=r"--model-dir .*none is not a folder"):
        house.make(house.root / "none").start([house.base])


def test_a_restart_serves_what_was_loaded_and_aliased(house: House) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx", aliases=["live"])
    house.changes.load("v2.onnx", "copy")
    house.changes.set_alias("small", "small", "1")
    house.restart(house.base)
    assert house.served() == ["copy@2", "small@1", "small@2"]
    assert house.models.resolve("live").version == "small@2"
    assert house.models.resolve("small").version == "small@1", "the name is pinned"
    house.changes.unload("copy")
    house.changes.delete_alias("small")
    house.restart(house.base)
    assert house.served() == ["small@1", "small@2"]
    assert house.models.resolve("small").version == "small@2"


def test_what_is_remembered_and_named_by_a_flag_is_loaded_once(house: House) -> None:
    second = house.put("v2.onnx", "2")
    house.changes.load("v2.onnx")
    house.restart(house.base, ModelSpec(second))
    assert house.loads == ["v1.onnx", "v2.onnx"]
    house.restart(house.base)
    assert house.served() == ["small@1", "small@2"], "it is remembered all the same"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda house: (house.twins / "v2.onnx").unlink(), "there is no file 'v2.onnx'"),
        (lambda house: house.put("v2.onnx", "2", seed=9), "has other content now"),
    ],
)
def test_a_restart_never_serves_another_file_than_the_remembered_one(
    house: House, spoil: Callable[[House], Any], says: str
) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx", aliases=["live"])
    spoil(house)
    with pytest.raises(ConfigError, match=says) as refused:
        house.restart(house.base)
    assert "remembers small@2, loaded from v2.onnx" in refused.value.message
    assert "--forget-models" in refused.value.message
    house.restart(house.base, forget=True)
    assert house.served() == ["small@1"]
    house.restart(house.base)
    assert house.served() == ["small@1"], "forgotten for good"
    assert not house.models.table.aliases


def test_an_alias_of_a_flag_that_is_gone_refuses_the_start(house: House) -> None:
    house.changes.set_alias("live", "small", "1")
    other = house.put("other.onnx", "1", name="other")
    with pytest.raises(ConfigError, match=r"alias live points at small@1.*--forget-models"):
        house.restart(ModelSpec(other))


def test_an_unload_waits_for_the_calls_that_hold_the_model(house: House) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx")
    old = house.models.resolve("small@1")
    unloading = threading.Thread(target=house.changes.unload, args=("small", "1"))
    with house.models.using("small@1") as engine:
        unloading.start()
        # New calls are refused at once, while the one inside goes on.
        for _ in range(1000):
            if house.served() == ["small@2"]:
                break
            threading.Event().wait(0.005)
        with pytest.raises(ModelNotFound), house.models.using("small@1"):
            pass
        assert engine is old
        assert not old.batcher.closed
    unloading.join()
    assert old.batcher.closed


def test_a_model_that_is_held_for_too_long_is_served_on(house: House) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx", aliases=["live"])
    changes = house.make(patience=0.05)
    with (
        house.models.using("small@2") as engine,
        pytest.raises(Unavailable, match="still held by 1 calls"),
    ):
        changes.unload("small", "2", force=True)
    assert house.models.resolve("live") is engine
    assert not engine.batcher.closed
    with house.models.using("live") as again:
        assert again is engine
    house.restart(house.base)
    assert house.models.resolve("live").version == "small@2"


def test_a_name_is_not_given_away_while_its_model_may_have_to_be_served_on(house: House) -> None:
    house.changes.load("v1.onnx", name="other")
    changes = house.make(patience=1.0)
    failed: list[BaseException] = []

    def unload() -> None:
        try:
            changes.unload("small", force=True)
        except BaseException as error:
            failed.append(error)

    unloading = threading.Thread(target=unload)
    with house.models.using("small") as engine:
        unloading.start()
        for _ in range(1000):
            if house.served() == ["other@1"]:
                break
            threading.Event().wait(0.002)
        with pytest.raises(Unavailable, match="small@1 is being unloaded, and served on"):
            changes.set_alias("small", "other")
        changes.set_alias("live", "other")
        unloading.join()
    assert isinstance(failed[0], Unavailable)
    assert house.models.resolve("small") is engine
    changes.unload("small")
    assert changes.set_alias("small", "other").engine.version == "other@1"


def test_a_load_of_what_is_served_that_fails_leaves_its_origin_as_it_was(house: House) -> None:
    house.put("other.onnx", "7")
    house.changes.load("other.onnx", name="other")
    before = house.models.table.find("small").origin
    with pytest.raises(FailedPrecondition):
        house.changes.load("v1.onnx", aliases=["other"])
    assert house.models.table.find("small").origin == before
    house.restart(house.base)
    assert house.served() == ["other@7", "small@1"]


def test_a_name_whose_load_is_refused_is_forgotten_unless_it_is_served(house: House) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx", name="new", aliases=["live"])
    with pytest.raises(FailedPrecondition):
        house.changes.load("v2.onnx", name="live")
    assert house.forgotten == ["live"], "nothing else is counted by it, and no run is to come"
    with pytest.raises(FailedPrecondition):
        house.changes.load("v2.onnx", name="small", aliases=["new"])
    assert house.forgotten == ["live"]


def test_models_are_not_tried_on_each_other(house: House) -> None:
    for version in ("2", "3"):
        house.put(f"v{version}.onnx", version)
        house.changes.load(f"v{version}.onnx")
    shadow = house.changes.start_shadow("small@2", "small@1", 1.0)
    for candidate, model in (("1", "2"), ("1", "3"), ("3", "2"), ("3", "1"), ("2", "3")):
        # A call would be mirrored from one to the other for ever, or its mirror mirrored.
        with pytest.raises(FailedPrecondition, match="small@2 is tried on small@1 already"):
            house.changes.start_shadow(f"small@{candidate}", f"small@{model}", 1.0)
    assert list(house.changes.shadows().values()) == [shadow]
    house.changes.stop_shadow("small@2")
    house.changes.start_shadow("small@1", "small@2", 1.0)
    house.changes.stop_shadow("small@1")


def test_a_name_is_forgotten_with_its_last_version(house: House) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx")
    house.changes.unload("small", "1")
    assert house.forgotten == []
    house.changes.unload("small")
    assert house.forgotten == ["small"]
    with pytest.raises(ModelNotFound, match="no model is served; load one"):
        house.models.resolve("small")


def test_an_unload_names_what_it_means(house: House) -> None:
    house.put("v2.onnx", "2")
    house.changes.load("v2.onnx", aliases=["live"])
    with pytest.raises(EmptyInput):
        house.changes.unload("")
    with pytest.raises(InvalidInput, match="in the versions 1, 2"):
        house.changes.unload("small")
    with pytest.raises(ModelNotFound, match=r"small@3 is not served; those that are: small@1"):
        house.changes.unload("small", "3")
    with pytest.raises(FailedPrecondition, match="alias live points at small@2; move or delete"):
        house.changes.unload("small", "2")
    house.changes.unload("small", "2", force=True)
    assert house.served() == ["small@1"]
    assert not house.models.table.aliases


def test_an_alias_is_no_other_models_name(house: House) -> None:
    house.put("other.onnx", "1", name="other")
    house.changes.load("other.onnx")
    with pytest.raises(FailedPrecondition, match="other is the name of a served model"):
        house.changes.set_alias("other", "small")
    house.changes.set_alias("third", "small")
    house.put("third.onnx", "1", name="third")
    with pytest.raises(FailedPrecondition, match="third is the name of a served model"):
        house.changes.load("third.onnx")
    for wrong in ("", "a@1", "-a", "a b", "a" * 129):
        with pytest.raises(InvalidInput):
            house.changes.set_alias(wrong, "small")
    with pytest.raises(NotFound, match="no alias none; those that there are: third"):
        house.changes.delete_alias("none")


def test_the_unnamed_model_stays_while_others_are_loaded(house: House) -> None:
    house.put("other.onnx", "1", name="other")
    house.changes.load("other.onnx")
    assert house.models.resolve("").version == "small@1"
    house.changes.unload("small")
    assert house.models.resolve("").version == "other@1"


def space(house: House, name: str) -> str:
    return house.models.resolve(name).manifest.space_id


def test_no_name_leaves_the_space_that_its_galleries_hold(house: House) -> None:
    house.galleries = [Bound("people", "small", space(house, "small"))]
    house.put("v2.onnx", "2", seed=9)
    with pytest.raises(
        FailedPrecondition,
        match=r"small would move from small@1 to small@2.*gallery people.*re-enrol.*alias",
    ):
        house.changes.load("v2.onnx")
    assert house.served() == ["small@1"], "what was refused is not left half done"
    # The way out that the message names: the name stays where it is, and the version can be tried.
    house.changes.set_alias("small", "small", "1")
    house.changes.load("v2.onnx", aliases=["next"])
    with pytest.raises(FailedPrecondition, match="small would move from small@1 to small@2"):
        house.changes.delete_alias("small")
    with pytest.raises(FailedPrecondition, match="small would move"):
        house.changes.set_alias("small", "small", "2")
    house.changes.set_alias("small", "small", "2", force=True)
    assert house.models.resolve("small").version == "small@2"


def test_the_last_model_of_a_gallerys_space_is_not_unloaded(house: House) -> None:
    house.galleries = [Bound("people", "small", space(house, "small")), Bound("x", "y", "sp_z")]
    house.put("other.onnx", "1", name="other", seed=9)
    house.changes.load("other.onnx")
    with pytest.raises(FailedPrecondition, match=r"no model would be left.*gallery people; keep"):
        house.changes.unload("small")
    assert house.models.resolve("small").version == "small@1"
    # Another precision of the same twin gives the space as well.
    house.put("int8.onnx", "1", name="small-int8", precision="int8")
    house.changes.load("int8.onnx")
    house.changes.unload("small")
    with pytest.raises(FailedPrecondition, match="gallery people"):
        house.changes.unload("small-int8")
    house.changes.unload("small-int8", force=True)
    assert house.served() == ["other@1"]


def test_a_name_that_was_unloaded_is_not_taken_by_a_twin_of_another_space(house: House) -> None:
    house.galleries = [Bound("people", "small", space(house, "small"))]
    house.put("int8.onnx", "1", name="small-int8", precision="int8")
    house.changes.load("int8.onnx")
    house.changes.unload("small")
    house.put("v2.onnx", "2", seed=9)
    with pytest.raises(
        FailedPrecondition, match=r"small would be small@2.*gallery people.*under another name"
    ):
        house.changes.load("v2.onnx")
    assert house.served() == ["small-int8@1"]
    house.changes.load("v2.onnx", "other")
    house.changes.load("v1.onnx")
    assert house.models.resolve("small").version == "small@1", "its own twin may come back"


def test_a_gallery_made_by_the_last_running_call_keeps_the_model(house: House) -> None:
    house.put("other.onnx", "1", name="other", seed=9)
    house.changes.load("other.onnx")
    failed: list[BaseException] = []

    def unload() -> None:
        try:
            house.changes.unload("small")
        except FailedPrecondition as error:
            failed.append(error)

    unloading = threading.Thread(target=unload)
    with house.models.using("small") as engine:
        unloading.start()
        for _ in range(1000):
            if house.served() == ["other@1"]:
                break
            threading.Event().wait(0.005)
        house.galleries = [Bound("late", "small", engine.manifest.space_id)]
    unloading.join()
    assert "gallery late" in str(failed[0])
    assert house.models.resolve("small") is engine


def test_a_version_of_the_same_space_takes_its_galleries_along(house: House) -> None:
    house.galleries = [Bound("people", "small", space(house, "small"))]
    house.put("v2.onnx", "2")  # the same weights under another version
    house.changes.load("v2.onnx")
    house.changes.unload("small", "1")
    assert house.served() == ["small@2"]


def test_what_cannot_be_written_down_is_not_done(house: House) -> None:
    house.put("v2.onnx", "2")
    with closing(sqlite3.connect(house.root / "catalog.db")) as another:
        another.execute(
            "CREATE TRIGGER full BEFORE INSERT ON models BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        another.commit()
        with pytest.raises(Exception, match="the catalogue of models"):
            house.changes.load("v2.onnx")
        assert house.served() == ["small@1"]
        another.execute("DROP TRIGGER full")
        another.commit()
    house.changes.load("v2.onnx")
    assert house.served() == ["small@1", "small@2"]


@pytest.mark.parametrize("old", [OLD_FORM, OLD_FORM + OLD_DELETED])
def test_a_catalogue_of_the_old_form_is_brought_up_to_date(tmp_path: Path, old: str) -> None:
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(old)
    with closing(data_folder.Catalog(path)) as file:
        assert file.read("PRAGMA user_version") == [(3,)]
        assert file.read("SELECT name, folder FROM galleries") == [("people", "f00")]
        assert file.read("SELECT count(*) FROM deleted") == [(0,)]
        assert ModelRecords(file).models() == []
    with closing(data_folder.Catalog(path)) as file:
        assert file.read("SELECT count(*) FROM aliases") == [(0,)]
        assert file.read("SELECT count(*) FROM gallery_aliases") == [(0,)]


def test_a_catalogue_of_version_2_keeps_its_models_and_gets_aliases_of_galleries(
    tmp_path: Path,
) -> None:
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD_FORM + OLD_DELETED + SECOND_FORM)
    with closing(data_folder.Catalog(path)) as file:
        assert file.read("PRAGMA user_version") == [(3,)]
        assert file.read("SELECT name FROM galleries") == [("people",)]
        assert [one.version for one in ModelRecords(file).models()] == ["2"]
        assert file.read("SELECT * FROM aliases") == [("live", "small", "2")]
        assert file.read("SELECT count(*) FROM gallery_aliases") == [(0,)]


def test_a_catalogue_that_cannot_be_brought_up_to_date_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD_FORM)
        connection.execute("CREATE TABLE gallery_aliases(in_the_way)")
        connection.commit()
    with pytest.raises(Exception, match="gallery_aliases"):
        data_folder.Catalog(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        assert "models" not in names


def test_a_catalogue_of_a_newer_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    data_folder.Catalog(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 4")
    with pytest.raises(Exception, match="its format is 4, this one reads up to 3"):
        data_folder.Catalog(path)
