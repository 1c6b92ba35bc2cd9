"""The verbs, as a user types them, against a real server in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import twins
from tests.conftest import RunningServer

CLASSES, EACH = 4, 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per subject, with pictures that resemble each other."""
    folder = tmp_path_factory.mktemp("photos")
    pixels, labels = twins.classes_of_pixels(CLASSES, EACH)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / f"subject {label}" / f"{index % EACH}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(path)
    return folder


def twinserve(server: RunningServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "twinserve.cli", *map(str, arguments)],
        env={**os.environ, "TWINSERVE_TARGET": server.target},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_create_takes_a_gallery_that_is_there_as_it_is_unless_a_model_is_named(
    server: RunningServer, photos: Path
) -> None:
    made = twinserve(server, "gallery", "create", "by-angle", "--metric", "cosine")
    assert made.returncode == 0, made.stderr
    enrolled = twinserve(server, "enroll", "by-angle", photos, "--create")
    assert enrolled.returncode == 0, enrolled.stderr
    named = twinserve(server, "enroll", "by-angle", photos, "--create", "--model", "small")
    assert named.returncode == 2
    assert "by-angle" in named.stderr


def test_from_a_folder_of_pictures_to_who_is_this(
    server: RunningServer, photos: Path, tmp_path: Path
) -> None:
    enrolled = twinserve(server, "enroll", "people", photos, "--create", "--json")
    assert enrolled.returncode == 0, enrolled.stderr
    assert json.loads(enrolled.stdout)["created"] == CLASSES * EACH

    again = twinserve(server, "enroll", "people", photos)
    assert again.stdout == f"people: {CLASSES * EACH} unchanged\n"

    found = twinserve(server, "search", "people", photos, "--top-k", "2", "--json")
    assert found.returncode == 0, found.stderr
    for entry in json.loads(found.stdout):
        best, second = entry["hits"]
        assert best["item"]["subject"] == Path(entry["probe"]).parent.name
        assert best["distance"] < second["distance"]

    probe = photos / "subject 2" / "1.png"
    right = twinserve(server, "verify", "people", "subject 2", probe, "--threshold", "1e-4")
    assert right.returncode == 0, right.stderr
    assert right.stdout.startswith("MATCH\n")
    wrong = twinserve(server, "verify", "people", "subject 1", probe, "--threshold", "1e-4")
    assert wrong.returncode == 1
    assert wrong.stdout.startswith("NO MATCH\n")

    shown = twinserve(server, "gallery", "show", "people", "--json")
    counts = json.loads(shown.stdout)
    assert (counts["item_count"], counts["subject_count"]) == (CLASSES * EACH, CLASSES)
    assert twinserve(server, "gallery", "delete", "people", "--yes").returncode == 0
    gone = twinserve(server, "gallery", "show", "people")
    assert gone.returncode == 2
    assert gone.stderr.startswith("twinserve: ")
    assert gone.stderr.count("\n") == 1


def test_vectors_equal_the_models_own(server: RunningServer, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    assert twinserve(server, "embed", photos, "--out", out).returncode == 0
    pixels, _ = twins.classes_of_pixels(CLASSES, EACH)
    np.testing.assert_allclose(np.load(out), twins.embed_pixels(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("encoding", "batch", "tolerance"),
    [("float32", 64, 1e-5), ("float16", 2, 2e-3), ("int8", 64, 2e-2), ("int8", 2, 2e-2)],
)
def test_packed_vectors_equal_the_models_own_as_far_as_their_encoding_holds(
    server: RunningServer,
    photos: Path,
    tmp_path: Path,
    encoding: str,
    batch: int,
    tolerance: float,
) -> None:
    out = tmp_path / "vectors.npy"
    flags = ("--encoding", encoding, "--batch", batch)  # by twos they go over a stream
    done = twinserve(server, "embed", photos, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    pixels, _ = twins.classes_of_pixels(CLASSES, EACH)
    expected = twins.embed_pixels(pixels)
    np.testing.assert_allclose(np.load(out), expected, atol=tolerance * np.abs(expected).max())


def test_bits_are_the_signs_of_the_models_own(
    server: RunningServer, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bits.npy"
    done = twinserve(server, "embed", photos, "--out", out, "--encoding", "binary")
    assert done.returncode == 0, done.stderr
    pixels, _ = twins.classes_of_pixels(CLASSES, EACH)
    assert np.array_equal(np.load(out), twins.embed_pixels(pixels) > 0)


def test_compare_decides_by_the_twins_own_calibration(server: RunningServer, photos: Path) -> None:
    same = twinserve(
        server, "compare", photos / "subject 0/0.png", photos / "subject 0/1.png", "--json"
    )
    other = twinserve(
        server, "compare", photos / "subject 0/0.png", photos / "subject 1/0.png", "--json"
    )
    assert (same.returncode, other.returncode) == (0, 1), (same.stderr, other.stderr)
    near, far = json.loads(same.stdout), json.loads(other.stdout)
    assert near["distance"] <= near["threshold"] < far["distance"]
    assert near["probability"] > far["probability"]


def test_broken_and_whole_pictures_in_one_call_are_told_apart(
    server: RunningServer, photos: Path, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    whole = photos / "subject 0" / "0.png"
    some = twinserve(server, "embed", tmp_path, whole)
    assert some.returncode == 1
    assert some.stderr.count("\n") == 2
    none = twinserve(server, "embed", tmp_path, "--json")
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr.count("\n") == 2
    assert f"{tmp_path / 'b.png'}: " in none.stderr


def test_models_and_health_are_told(server: RunningServer) -> None:
    assert twinserve(server, "health").stdout == "SERVING\n"
    (model,) = json.loads(twinserve(server, "model", "list", "--json").stdout)
    assert (model["name"], model["dimension"]) == ("small", twins.DIMENSION)
    shown = twinserve(server, "model", "show")
    assert shown.returncode == 0, shown.stderr
    assert model["space_id"] in shown.stdout
