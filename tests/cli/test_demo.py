"""The parts of the demo that can be had without training; and, marked long, the whole of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import twins
from twinserve.cli.contact_sheet import Tile, draw
from twinserve.cli.demo import _fresh_data_dir, _verdict
from twinserve.cli.demo_questions import Drawings, beside_the_stated, metrics
from twinserve.cli.server_process import ServerProcess
from twinserve.client import Client, Comparison, Health
from twinserve.decision import Outcome
from twinserve.errors import DataError, Unavailable
from twinserve.train.data import Labelled

REPOSITORY = Path(__file__).resolve().parents[2]


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (20, 20), level).save(buffer, "PNG")
    return buffer.getvalue()


def labelled() -> Labelled:
    return Labelled(
        rows=np.zeros((3, 2, 2, 1), np.uint8),
        labels=np.array([1, 0, 1]),
        class_names=("Latin/one", "Latin/two"),
        names=("Latin/two/b.png", "Latin/one/c.png", "Latin/two/a.png"),
    )


def test_the_contact_sheet_frames_right_hits_green_and_wrong_ones_red(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    right = [Tile(picture(0), "p"), Tile(picture(0), "h", right=True)]
    wrong = [Tile(picture(0), "p"), Tile(picture(0), "h", right=False)]

    def colours(rows: list[list[Tile]]) -> set[tuple[int, ...]]:
        draw(rows, "title", "subtitle", path, panels=1)
        with Image.open(path) as sheet:
            return {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}

    green, red = (46, 158, 91), (209, 73, 91)
    assert green in colours([right])
    assert red not in colours([right])
    assert red in colours([wrong])
    assert green not in colours([wrong])


def test_the_contact_sheet_holds_every_row(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    # Each probe has a grey level of its own, so that a lost or covered row is seen.
    rows = [[Tile(picture(10 * i), ""), Tile(picture(255), "", right=True)] for i in range(1, 8)]
    draw(rows, "", "", path)
    with Image.open(path) as sheet:
        levels = {c[0] for _, c in sheet.convert("RGB").getcolors(1 << 20) if len(set(c)) == 1}
    assert {10 * i for i in range(1, 8)} <= levels


@pytest.mark.parametrize("prefix", ["", "images/", "deep/er/"])
def test_drawings_are_the_very_files_that_were_trained_on(tmp_path: Path, prefix: str) -> None:
    images = labelled()
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in images.names:
            file.writestr(prefix + name, name)
            (tmp_path / "folder" / prefix / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / prefix / name).write_text(name)
    for data in (archive, tmp_path / "folder"):
        drawings = Drawings.of(images, data)
        assert [content.decode() for content in drawings.files] == list(images.names)
        assert drawings.of_class(1) == [2, 0]
        assert drawings.subject(1) == "Latin/one"


def test_drawings_of_other_data_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("other.png", "x")
    with pytest.raises(DataError, match=r"Latin/two/b\.png is not in the data set"):
        Drawings.of(labelled(), archive)


def test_an_earlier_demos_galleries_are_set_aside(tmp_path: Path) -> None:
    for round in ("first", "second", "third"):
        data = _fresh_data_dir(tmp_path)
        assert not data.exists()
        data.mkdir()
        (data / "gallery").write_text(round)
    assert (tmp_path / "data.before" / "gallery").read_text() == "second"


def test_the_mean_batch_is_read_from_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "# TYPE twinserve_batch_rows histogram\n"
        'twinserve_batch_rows_sum{model="a"} 30.0\n'
        'twinserve_batch_rows_sum{model="b"} 10.0\n'
        'twinserve_batch_rows_count{model="a"} 4.0\n'
        'twinserve_batch_rows_count{model="b"} 1.0\n'
        'twinserve_inference_seconds_sum{model="a"} 0.02\n'
        'twinserve_request_seconds_count{code="OK",method="Embed"} 33.0\n'
        "twinserve_gallery_items 26.0\n"
    )
    found = metrics(text)
    assert found["mean_batch"] == 8.0
    assert found["inference_seconds_per_row"] == pytest.approx(0.0005)
    assert "33 requests, 40 rows embedded in 5 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("server", "torch", "pixels", "code"),
    [(0.75, 0.75, 0.22, 0), (0.75, 0.76, 0.22, 2), (0.2, 0.2, 0.22, 2)],
)
def test_the_demo_fails_where_the_server_differs_or_nothing_was_learned(
    server: float, torch: float, pixels: float, code: int
) -> None:
    assert _verdict({"server": server, "torch": torch, "pixels": pixels}) == code


def test_a_server_process_serves_and_stops_with_exit_code_0(
    twin_file: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(twin_file), "--data-dir", str(tmp_path / "data")]
    with ServerProcess(flags, tmp_path / "log") as server:
        with Client(server.target) as client:
            assert client.health() is Health.SERVING
            pixels, _ = twins.classes_of_pixels(1, 1)
            assert client.embed([pixels[0]]).vectors.shape == (1, twins.DIMENSION)
        assert "twinserve_batch_rows_count" in server.metrics()
        assert (server.peak_bytes() or 1 << 30) > 1 << 20
        assert server.stop() == 0


def test_a_server_that_cannot_start_gives_its_last_words(tmp_path: Path) -> None:
    flags = ["--model", str(tmp_path / "none.onnx"), "--data-dir", str(tmp_path / "data")]
    with (
        pytest.raises(Unavailable, match=r"none\.onnx is not a file"),
        ServerProcess(flags, tmp_path / "log"),
    ):
        pass


def test_false_accepts_above_the_stated_bound_are_explained() -> None:
    stated = Comparison(0.5, Outcome.NO_MATCH, 0.2, 0.01, 0.025, None, None)
    assert beside_the_stated(0.02, stated) == " (the twin states 1.0%, at most 2.5%)"
    assert "of another alphabet" in beside_the_stated(0.034, stated)
    nothing = Comparison(0.5, Outcome.NOT_CALIBRATED, None, None, None, None, None)
    assert beside_the_stated(0.034, nothing) == ""


@pytest.mark.long
def test_the_whole_demo_runs_twice_in_one_folder(tmp_path: Path) -> None:
    data = REPOSITORY / "data" / "omniglot" / "images_background_small1.zip"
    command = [sys.executable, "-m", "twinserve.cli", "demo", "--seconds", "20"]
    command += ["--out", str(tmp_path / "demo"), "--data", str(data)]
    for _ in range(2):
        subprocess.run(command, check=True, timeout=280)
        summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
        assert summary["one_shot"]["server"] > summary["one_shot"]["pixels"] + 0.2
        assert summary["search"]["probes"] == 494
        assert summary["metrics"]["mean_batch"] > 1
    assert (tmp_path / "demo" / "data.before").is_dir()
