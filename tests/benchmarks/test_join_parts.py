"""Files of one part each become a table that a training takes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.join_parts import join


def test_rows_keep_their_order_and_name_their_part(tmp_path: Path) -> None:
    train, dev = tmp_path / "train.csv", tmp_path / "dev.csv"
    train.write_text('"a, b",c,5.0\n"d\ne",f,0.25\n', encoding="utf-8")
    dev.write_text("狗,猫,3\n", encoding="utf-8")
    out = tmp_path / "all.csv"
    assert join([("train", train), ("report", dev)], ("one", "two", "score"), out) == 3
    with out.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["one", "two", "score", "split"],
            ["a, b", "c", "5.0", "train"],
            ["d\ne", "f", "0.25", "train"],
            ["狗", "猫", "3", "report"],
        ]
    with pytest.raises(ValueError, match=r"line 1 of .*dev\.csv has 3 columns"):
        join([("report", dev)], ("one", "two"), out)
