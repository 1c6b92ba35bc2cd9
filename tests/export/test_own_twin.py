"""A network of the user's own is trained, gated and exported, and its file needs no code."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train import links
from twinserve.export.exporter import export
from twinserve.export.session import GraphSession, embed_all
from twinserve.train.evaluate import embed

CODE = """
from torch import nn

def make(contract, config, units):
    return nn.Sequential(
        nn.Linear(contract.shape[0], units), nn.GELU(), nn.Linear(units, config.dimension)
    )
"""


def test_a_run_of_an_own_network_is_exported_and_its_file_needs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
        monkeypatch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)
    (tmp_path / "exported_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"twin": "exported_net:make", "takes": "tensor", "twin_parameters": {"units": 9}}
    run = links.trained(
        links.write(tmp_path), "pairs", tmp_path / "run", loss="contrastive", **settings
    )
    manifest = export(tmp_path / "run", tmp_path / "own.onnx")
    assert manifest.origin["twin"] == "exported_net:make"
    assert manifest.calibrations
    assert str(tmp_path) not in manifest.to_json()
    (tmp_path / "exported_net.py").unlink()
    sys.modules.pop("exported_net")
    rows = run.linked_part("report").rows
    session = GraphSession((tmp_path / "own.onnx").read_bytes(), run.twin.contract)
    np.testing.assert_allclose(embed_all(session, rows), embed(run.twin, rows), atol=1e-5)
