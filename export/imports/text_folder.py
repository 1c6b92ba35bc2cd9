"""A text encoder's folder with torch weights, with or without sentence-transformers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from twinserve.errors import ConfigError
from twinserve.export.evidence import Source
from twinserve.export.imports import modules
from twinserve.export.imports.settings import Answers, Settings
from twinserve.export.imports.source import (
    Imported,
    check_size,
    digests,
    metric_of,
    truncations_of,
)
from twinserve.export.imports.tokenizer import (
    FILE,
    as_the_library_cuts,
    max_tokens_of,
    pad_id_of,
    read_tokenizer,
    text_contract,
    tokenizer_json,
    with_tokenizer,
)
from twinserve.export.to_onnx import to_onnx, weights_digest
from twinserve.manifest import TEXT_INPUTS
from twinserve.train import encoders
from twinserve.train.evaluate import embed
from twinserve.train.twins import TextTwin

_BATCH = 32
_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")


def weight_files(folder: Path) -> list[Path]:
    """Return the files of torch weights that transformers would read here; [] where none are."""
    for name in modules.WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
    for pattern in _SHARDS:
        if shards := sorted(folder.glob(pattern)):
            return shards
    return []


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


def read_twin(
    folder: Path, texts: Sequence[str], settings: Settings, answers: Answers
) -> tuple[TextTwin, dict[str, Any]]:
    """Read a text encoder as a twin in torch, and say what it was made of.

    Args:
        folder: of sentence-transformers, or of transformers with config.json and weights.
        texts: to hold the tokenizer against the library's own.
        settings: flags.
        answers: is told what was taken.

    Raises:
        ConfigError, DataError, ManifestError: see `modules`, `tokenizer`, `train.encoders`.
    """
    plan = modules.plan_of(folder, settings, answers)
    weights = weight_files(plan.encoder)
    check_size(weights)
    encoder = encoders.load_text(plan.encoder)

    tokenizer = (
        tokenizer_json(plan.encoder, lower=plan.lower)
        if settings.tokenizer is None
        else read_tokenizer(settings.tokenizer)
    )
    contract = text_contract(
        tokenizer,
        inputs=TEXT_INPUTS[:2],
        max_tokens=max_tokens_of(
            plan.max_tokens,
            encoders.positions(plan.encoder),
            settings,
            answers,
            "the folder's configuration",
        ),
        prompts=plan.prompts,
        default_prompt=plan.default_prompt,
        pad_id=pad_id_of(plan.encoder, tokenizer),
        settings=settings,
        answers=answers,
    )
    checked = 0
    if settings.tokenizer is None:
        tokenizer, checked = as_the_library_cuts(
            plan.encoder, tokenizer, contract, list(texts), lower=plan.lower
        )
        contract = with_tokenizer(contract, tokenizer)

    width = encoder.width * len(plan.pooling)
    if plan.layers and (last := [layer for layer in plan.layers if layer is not None]):
        width = len(last[-1].weight)
    cut = cut_of(plan.cut, width, settings, answers)
    metric = metric_of(
        plan.similarity,
        settings,
        answers,
        "config_sentence_transformers.json",
        normalized=plan.normalized,
    )
    dimension = width if cut is None else cut
    truncations = truncations_of(
        plan.matryoshka, dimension, settings, answers, "the folder's configuration"
    )
    twin = TextTwin(
        encoder,
        contract=contract,
        tokenizer=tokenizer,
        dimension=dimension,
        metric=metric,
        normalized=plan.normalized,
        truncations=truncations,
        pooling=plan.pooling,
        head=encoders.head(plan.layers, cut),
    ).eval()
    read = [*plan.files, *weights, plan.encoder / FILE]
    origin = {
        "kind": "sentence-transformers"
        if modules.is_sentence_transformer(folder)
        else "transformers",
        "architecture": type(encoder.model).__name__,
        "made_with": {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "pooling": list(plan.pooling),
        "layers": [
            "unit length" if layer is None else f"dense {len(layer.weight)} {layer.activation}"
            for layer in plan.layers
        ],
        "similarity": plan.similarity,
        "texts_tokenized_alike": checked,
        "files": digests(folder, [file for file in read if file.is_file()]),
    }
    return twin, origin


def cut_of(stated: int | None, width: int, settings: Settings, answers: Answers) -> int | None:
    """Return to how many coordinates embeddings are cut, None to none.

    Raises:
        ConfigError: more than there are.
    """
    cut = settings.dimension
    if stated is not None:
        where = "config_sentence_transformers.json"
        cut = answers.read("dimension", settings.dimension, stated, where, "--dimension")
    if cut is not None and not 1 <= cut <= width:
        raise ConfigError(
            f"--dimension is {cut}, and the embedding has {width} coordinates; give fewer"
        )
    return None if cut == width else cut
