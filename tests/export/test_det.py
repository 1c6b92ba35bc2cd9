"""DET curves in plain characters: where a rate stands, which curve hides which, and pictures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import pytest
from PIL import Image

from tests.test_manifest import calibration, document, model
from twinserve.cli.__main__ import main
from twinserve.export import det
from twinserve.manifest import Calibration, Manifest, OperatingPoint, attach

WIDTH, HEIGHT = 61, 21


def points(*rates: tuple[float, float]) -> tuple[OperatingPoint, ...]:
    """Operating points of (FAR, FRR), with a bound of twice the rate."""
    return tuple(
        OperatingPoint(far, min(1.0, 2 * far), 0.5 - 0.01 * place, 1.0 - frr)
        for place, (far, frr) in enumerate(rates)
    )


def normal_curve(separation: float) -> Calibration:
    """Of two normal distributions, so many standard deviations apart."""
    normal = NormalDist()
    rates = (0.2, 0.1, 0.05, 0.02, 0.01)
    misses = [normal.cdf(normal.inv_cdf(1 - rate) - separation) for rate in rates]
    return calibration(points=points(*zip(rates, misses, strict=True)))


def places(text: str, mark: str) -> list[tuple[int, int]]:
    """(column, line) of a mark inside the frame, from the left and from the top."""
    found = []
    for number, line in enumerate(text.splitlines()[1 : HEIGHT + 1]):
        inside = line[11 : 11 + WIDTH]
        found += [(column, number) for column, cell in enumerate(inside) if cell == mark]
    return found


def test_two_normal_distributions_make_a_straight_falling_line() -> None:
    text = det.plot({"only": normal_curve(2.0)}, WIDTH, HEIGHT)
    marks = sorted(places(text, "o"))
    assert len(marks) == 5
    slopes = [(below[1] - above[1]) / (below[0] - above[0]) for above, below in pairwise(marks)]
    whole = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    # To half a character of each.
    assert all(slope == pytest.approx(whole, abs=0.15) for slope in slopes)


def test_ticks_stand_where_their_rates_do() -> None:
    curve = calibration(points=points((0.2, 0.01), (0.01, 0.2)))
    lines = det.plot({"only": curve}, WIDTH, HEIGHT).splitlines()
    frame, axis, names = lines[1 : HEIGHT + 1], lines[HEIGHT + 1], lines[HEIGHT + 2]
    marks = places("\n".join(lines), "o")
    assert marks == [(WIDTH - 1, HEIGHT - 1), (0, 0)][::-1]
    assert frame[0].startswith("     20 % +")
    assert frame[-1].startswith("      1 % +")
    assert axis[11] == axis[11 + WIDTH - 1] == "+"
    assert names.split() == ["1", "%", "5", "%", "20", "%"]


def test_a_better_twin_lies_below_and_left_and_the_first_lies_on_top() -> None:
    better, worse = normal_curve(3.0), normal_curve(1.0)
    text = det.plot({"better": better, "worse": worse}, WIDTH, HEIGHT)
    lowest = {mark: max(line for _, line in places(text, mark)) for mark in "ox"}
    assert lowest["o"] > lowest["x"]
    assert "o better" in text
    assert "x worse" in text
    alike = det.plot({"one": better, "other": better}, WIDTH, HEIGHT)
    assert places(alike, "x") == []


def test_the_bound_stands_to_the_right_of_its_curve() -> None:
    text = det.plot({"only": normal_curve(2.0)}, WIDTH, HEIGHT)
    curve = {line: column for column, line in places(text, "o")}
    for line, column in curve.items():
        beyond = [dot for dot, other in places(text, ".") if other == line]
        assert max(beyond, default=WIDTH) > column
    assert ". 95 % bound of the first" in text


@pytest.mark.parametrize(
    "rates", [[(0.5, 0.0), (0.1, 0.0)], [(0.5, 1.0)], [(1.0, 0.0), (0.3, 0.3)], [(1e-7, 0.5)]]
)
def test_rates_that_are_no_normal_deviates_are_drawn_at_the_edge(
    rates: list[tuple[float, float]],
) -> None:
    text = det.plot({"only": calibration(points=points(*rates))}, WIDTH, HEIGHT)
    assert len(places(text, "o")) == len(rates)
    assert max(map(len, text.splitlines())) <= WIDTH + 12


def test_curves_are_chosen_by_what_they_tell() -> None:
    entries = [
        calibration(dimension=8),
        calibration(dimension=8, aggregation="nearest_of_2"),
        calibration(dimension=8, aggregation="nearest_of_10"),
        calibration(dimension=4),
        calibration(dimension=4, aggregation="nearest_of_10"),
        calibration(dimension=2, points=()),
    ]
    names = [
        "fp32, single items",
        "fp32, nearest of 10",
        "fp32, nearest of 2",
        "fp32, single items, first 4 numbers",
        "fp32, nearest of 10, first 4 numbers",
    ]
    assert list(det.curves(entries, 8, 6)) == names
    assert list(det.curves(entries, 8, 2)) == names[:2]
    assert det.curves([calibration(points=())], 8, 6) == {}


class TestVerb:
    def write(self, tmp_path: Path, manifest: Manifest) -> str:
        path = tmp_path / "twin.onnx"
        path.write_bytes(attach(model(), manifest))
        return str(path)

    def test_it_is_drawn_where_asked_for(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = self.write(tmp_path, document())
        assert main(["inspect", file]) == 0
        assert "false rejects" not in capsys.readouterr().out
        assert main(["inspect", file, "--det"]) == 0
        assert "false rejects" in capsys.readouterr().out

    def test_a_terminal_gets_it_unasked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = self.write(tmp_path, document())
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        assert main(["inspect", file]) == 0
        assert "false rejects" in capsys.readouterr().out

    def test_a_picture_is_written_the_same_every_time(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = self.write(tmp_path, document())
        one, other = tmp_path / "one.png", tmp_path / "other.png"
        assert main(["inspect", file, "--det", str(one), "--json"]) == 0
        assert main(["inspect", file, "--det", str(other)]) == 0
        assert f"wrote {other}" in capsys.readouterr().out
        assert one.read_bytes() == other.read_bytes()
        with Image.open(one) as picture:
            assert picture.format == "PNG"
            assert picture.width > 400
            assert len(set(picture.convert("RGB").get_flattened_data())) > 10

    @pytest.mark.parametrize(
        ("changed", "target", "complaint"),
        [
            ({}, "curve.pdf", "is no .png"),
            ({"calibrations": ()}, "-", "holds no calibration to draw"),
        ],
    )
    def test_what_cannot_be_drawn_is_told(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        changed: dict[str, object],
        target: str,
        complaint: str,
    ) -> None:
        file = self.write(tmp_path, document(**changed))
        assert main(["inspect", file, "--det", target]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert complaint in captured.err
