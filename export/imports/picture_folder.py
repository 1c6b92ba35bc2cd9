"""A vision encoder's folder with torch weights: config.json, preprocessor_config.json, weights."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from twinserve.export.evidence import Source
from twinserve.export.imports.source import Imported
from twinserve.export.to_onnx import to_onnx, weights_digest
from twinserve.train.evaluate import embed
from twinserve.train.pretrained.picture import read_twin
from twinserve.train.pretrained.settings import Answers, Settings

_BATCH = 16


def import_folder(folder: Path, settings: Settings, answers: Answers) -> Imported:
    """Make a twin of a vision encoder; see `read_twin`.

    Raises:
        GateFailed: the encoder cannot be written as ONNX.
    """
    twin, origin = read_twin(folder, settings, answers)
    return Imported(
        graph=to_onnx(twin),
        contract=twin.contract,
        dimension=twin.dimension,
        metric=twin.metric,
        normalized=twin.normalized,
        weights_digest=weights_digest(twin),
        source=Source(
            lambda rows: embed(twin, rows, batch_size=_BATCH),
            f"torch {torch.__version__}, transformers {transformers.__version__}",
        ),
        truncations=twin.truncations,
        origin=origin,
    )
