"""A text encoder's folder with torch weights, with or without sentence-transformers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from twinserve.export.evidence import Source
from twinserve.export.imports.source import Imported
from twinserve.export.to_onnx import to_onnx, weights_digest
from twinserve.train.evaluate import embed
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.pretrained.text import read_twin

_BATCH = 32


def import_folder(
    folder: Path, texts: Sequence[str], settings: Settings, answers: Answers
) -> Imported:
    """Make a twin of a text encoder; see `read_twin`.

    Raises:
        GateFailed: the encoder cannot be written as ONNX.
    """
    twin, origin = read_twin(folder, texts, settings, answers)
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
        tokenizer=twin.tokenizer,
        truncations=twin.truncations,
        origin=origin,
    )
