"""A text encoder's folder as a twin in torch, with or without sentence-transformers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from twinserve.errors import ConfigError
from twinserve.manifest import TEXT_INPUTS, TextInput
from twinserve.train import encoders
from twinserve.train.pretrained import modules
from twinserve.train.pretrained.folders import (
    check_size,
    digests,
    metric_of,
    truncations_of,
    weight_files,
)
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.pretrained.tokenizer import (
    FILE,
    as_the_library_cuts,
    max_tokens_of,
    pad_id_of,
    read_tokenizer,
    text_contract,
    tokenizer_json,
    with_tokenizer,
)
from twinserve.train.twins import TextTwin


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
    contract, tokenizer, checked = read_contract(plan, texts, settings, answers)
    width = width_of(encoder, plan.pooling, plan.layers)
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
    origin = {**origin_of(folder, plan, encoder), "texts_tokenized_alike": checked}
    return twin, origin


def read_contract(
    plan: modules.Plan, texts: Sequence[str], settings: Settings, answers: Answers
) -> tuple[TextInput, str, int]:
    """Read the input contract of a text encoder, and its tokenizer.

    Args:
        plan: of its folder.
        texts: to hold the tokenizer against the library's own.
        settings: flags.
        answers: is told what was taken.

    Returns:
        The contract, tokenizer.json, and on how many texts it gave the library's ids.

    Raises:
        ConfigError, DataError, ManifestError: see `tokenizer`.
    """
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
    return contract, tokenizer, checked


def width_of(
    encoder: encoders.TextEncoder,
    pooling: Sequence[str],
    layers: Sequence[encoders.Dense | None],
) -> int:
    """Return how many coordinates come out of pooling and the layers behind it."""
    dense = [layer for layer in layers if layer is not None]
    return len(dense[-1].weight) if dense else encoder.width * len(pooling)


def origin_of(folder: Path, plan: modules.Plan, encoder: encoders.TextEncoder) -> dict[str, Any]:
    """Say what a text encoder was made of, for a manifest."""
    read = [*plan.files, *weight_files(plan.encoder), plan.encoder / FILE]
    return {
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
        "files": digests(folder, [file for file in read if file.is_file()]),
    }


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
