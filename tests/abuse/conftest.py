"""One server with keys that all cases abuse, one after the other."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import twins
from tests.abuse.victim import PIXELS, Victim
from tests.conftest import start
from tests.server.security.guarded import Guarded
from twinserve.client import EnrollItem
from twinserve.distance import Metric
from twinserve.server.security import keys
from twinserve.server.security.access import Role

PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
MOST_CONNECTIONS = 200


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("abuse")
    guarded = Guarded(None, folder / "keys.toml")  # type: ignore[arg-type]
    for name, role in (("ops", Role.ADMIN), ("reader", Role.READ), ("writer", Role.WRITE)):
        guarded.make(name, role)
    guarded.make("north", Role.ADMIN, galleries=["north-*", "shared"])
    guarded.make("old", Role.ADMIN, expires=PAST)
    guarded.make("slow", Role.READ, rate=0.2, burst=1)
    guarded.make("gone", Role.ADMIN)
    keys.revoke(guarded.path, "gone")
    models = folder / "models"
    models.mkdir()
    files = {
        "image": twins.small_image_twin("image", metric=Metric.COSINE),
        "text": twins.small_text_twin("text"),
        "vectors": twins.small_tensor_twin(),
    }
    flags: list[str | Path] = []
    for name, data in files.items():
        (models / f"{name}.onnx").write_bytes(data)
        flags += ["--model", models / f"{name}.onnx"]
    (folder / "outside.onnx").write_bytes(files["image"])
    (models / "link.onnx").symlink_to(folder / "outside.onnx")
    flags += ["--model-dir", models, "--backup-dir", folder / "backups", "--keys", guarded.path]
    flags += ["--audit-log", guarded.audit, "--data-dir", folder / "data"]
    flags += ["--max-connections", str(MOST_CONNECTIONS), "--max-message-bytes", "16M"]
    flags += ["--runners", "1", "--threads", "1"]  # nothing is measured at the start
    # All that it would ever log, to look for secrets and faults in.
    guarded.server = start(*flags, environment={"TWINSERVE_LOG": "DEBUG"})
    with guarded.client("ops") as client:
        for name in ("north-1", "south-1"):
            client.create_gallery(name, model="image", metadata_keys={"note": "text"})
            items = [EnrollItem(PIXELS[i], subject=name, id=f"item-{i}") for i in range(2)]
            client.enroll(name, items)
        client.set_gallery_alias("shared", "south-1")
        client.set_gallery_alias("south-live", "south-1")
    made = Victim(guarded, folder)
    yield made
    made.channel.close()
    if guarded.server.process.poll() is None:
        assert guarded.server.stop() == 0
    guarded.check_logs()
    # Whatever was sent, each line of the log is one of ours.
    assert all(json.loads(line) for line in guarded.server.errors)
