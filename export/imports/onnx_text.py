"""A text encoder as an ONNX graph: pooling and unit length are put behind it where they lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export.evidence import Source
from twinserve.export.imports.onnx_file import (
    SOURCE,
    OnnxFile,
    Original,
    Port,
    check_batch,
    choose_output,
    graph_digest,
    origin_of,
)
from twinserve.export.imports.source import Imported
from twinserve.export.imports.surgery import Surgery
from twinserve.feed import Row, Rows, feed
from twinserve.manifest import TEXT_INPUTS, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train import encoders
from twinserve.train.heads import unit
from twinserve.train.pooling import pool
from twinserve.train.pretrained.folders import metric_of, truncations_of
from twinserve.train.pretrained.modules import Plan
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.pretrained.text import cut_of
from twinserve.train.pretrained.tokenizer import max_tokens_of, text_contract

# Pooled by whoever exported the graph, then a state per token. A pooler trained to tell whether
# sentences follow each other ("pooler_output") is no embedding, unless it is asked for.
_USUAL_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
_BATCH = 32


def is_text(file: OnnxFile) -> bool:
    """Whether a graph takes token ids."""
    return any(_meaning(port) == "input_ids" for port in file.inputs)


def import_text(
    file: OnnxFile,
    plan: Plan,
    tokenizer: str,
    pad_id: int,
    places: int | None,
    settings: Settings,
    answers: Answers,
) -> Imported:
    """Make a twin of a graph that takes token ids.

    Args:
        file: the graph.
        plan: what its folder says, or guesses.
        tokenizer: tokenizer.json.
        pad_id: id that pads.
        places: how many tokens the encoder has places for, None where unknown.
        settings: flags.
        answers: is told what was taken.

    Raises:
        ConfigError: inputs that a text twin does not give, a fixed batch or length, several
            outputs, or states that no pooling was named for.
        DataError: a graph that onnxruntime cannot run.
        ManifestError: a tokenizer that gives ids which the graph does not know.
    """
    check_batch(file, settings)
    names = _inputs(file)
    contract = text_contract(
        tokenizer,
        inputs=tuple(names),
        max_tokens=max_tokens_of(
            plan.max_tokens, places, settings, answers, "the folder's configuration"
        ),
        prompts=plan.prompts,
        default_prompt=plan.default_prompt,
        pad_id=pad_id,
        settings=settings,
        answers=answers,
    )
    output = choose_output(file, settings, _USUAL_OUTPUTS)
    original = Original(file, output)

    def raw(batch: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        given = feed(batch, contract)
        mask = given.get(TEXT_INPUTS[1], np.ones_like(given[TEXT_INPUTS[0]]))
        return original.run({names[name].name: array for name, array in given.items()}), mask

    largest = max(Tokenizer(tokenizer, contract).largest_id, contract.pad_id)
    shape = _shape(lambda row: raw([row])[0], largest)
    pooling = _pooling(plan, contract, output, shape, answers)
    width = shape[-1] * max(1, len(pooling))
    layers = plan.layers if pooling else ()
    if layers and (last := [layer for layer in layers if layer is not None]):
        width = len(last[-1].weight)
    cut = cut_of(plan.cut, width, settings, answers)
    dimension = width if cut is None else cut
    head = encoders.head(layers, cut)

    def embed(given: Rows) -> NDArray[np.float32]:
        # Texts run beside others of their own length alone, so that nothing is padded here.
        lengths = np.array([len(row) for row in given])
        found = np.empty((len(lengths), dimension), dtype=np.float32)
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            for start in range(0, len(places), _BATCH):
                items = places[start : start + _BATCH]
                states, mask = raw([given[item] for item in items.tolist()])
                vectors = torch.from_numpy(states)
                with torch.inference_mode():
                    if pooling:
                        vectors = pool(vectors, torch.from_numpy(mask), pooling)
                    vectors = head(vectors)
                    found[items] = (unit(vectors) if plan.normalized else vectors).numpy()
        return found

    metric = metric_of(
        plan.similarity,
        settings,
        answers,
        "config_sentence_transformers.json",
        normalized=plan.normalized,
    )
    truncations = truncations_of(
        plan.matryoshka, dimension, settings, answers, "the folder's configuration"
    )

    surgery = Surgery(file.model)
    surgery.take_texts([(name, port.name, port.kind) for name, port in names.items()])
    value = surgery.output(output.name, output.kind)
    if pooling:
        value = surgery.pool(value, TEXT_INPUTS[1], pooling)
    for layer in layers:
        value = surgery.unit(value) if layer is None else surgery.dense(value, layer)
    if cut is not None:
        value = surgery.cut(value, cut)
    if plan.normalized:
        value = surgery.unit(value)
    graph = surgery.finish(value, dimension)
    return Imported(
        graph=graph,
        contract=contract,
        dimension=dimension,
        metric=metric,
        normalized=plan.normalized,
        weights_digest=graph_digest(graph),
        source=Source(embed, SOURCE),
        tokenizer=tokenizer,
        truncations=truncations,
        origin={
            **origin_of(file, output),
            "pooling": list(pooling),
            "similarity": plan.similarity,
        },
    )


def _shape(run: Callable[[Row], NDArray[np.float32]], largest: int) -> tuple[int, ...]:
    """Return the shape that the graph gives for one token, the one of the largest id.

    Raises:
        DataError: the graph takes no ids at all.
        ManifestError: it takes the smallest, and not the largest.
    """
    try:
        return run(np.array([largest], dtype=np.int64)).shape
    except DataError as error:
        run(np.zeros(1, dtype=np.int64))
        raise ManifestError(
            f"the tokenizer does not fit the encoder: its largest id is {largest}, and the graph "
            f"cannot look that up ({error.message[:200]}); give the tokenizer.json that the "
            "encoder was trained with"
        ) from error


def _pooling(
    plan: Plan, contract: TextInput, output: Port, shape: tuple[int, ...], answers: Answers
) -> tuple[str, ...]:
    if len(shape) == 2:
        answers.drop("pooling")
        return ()
    if len(shape) != 3:
        raise ConfigError(
            f"the output {output.name} has rank {len(shape)} ({list(shape)}), an embedding has "
            "rank 2 [batch, dimension], or 3 [batch, length, width] where it is to be pooled; "
            "name another with --output"
        )
    if not plan.pooling:
        raise ConfigError(
            f"the output {output.name} gives a vector per token ({list(shape)}); say how they "
            "become one with --pooling: mean, cls, max, lasttoken, mean_sqrt_len or weightedmean"
        )
    if TEXT_INPUTS[1] not in contract.inputs:
        raise ConfigError(
            "the graph takes no attention mask, so that padded tokens could not be told from real "
            "ones; export it again with one"
        )
    return plan.pooling


def _inputs(file: OnnxFile) -> dict[str, Port]:
    """Return the graph's inputs by the names that a contract gives them, in their order."""
    found: dict[str, Port] = {}
    for port in file.inputs:
        meaning = _meaning(port)
        if meaning is None or meaning in found:
            raise ConfigError(
                f"the graph takes {port}, which a text twin does not give; it gives "
                f"{', '.join(TEXT_INPUTS)}: export the graph again with these alone"
            )
        if port.shape is not None and len(port.shape) != 2:
            raise ConfigError(f"the graph takes {port}; a text twin gives [batch, length]")
        if port.shape is not None and isinstance(port.shape[1], int):
            raise ConfigError(
                f"the graph fixes its length to {port.shape[1]} tokens ({port}); "
                "export it again with a dynamic length"
            )
        found[meaning] = port
    return {name: found[name] for name in TEXT_INPUTS if name in found}


def _meaning(port: Port) -> str | None:
    name = port.name.lower()
    if port.type_name not in ("int64", "int32"):
        return None
    if "mask" in name:
        return TEXT_INPUTS[1]
    if "type" in name or "segment" in name:
        return TEXT_INPUTS[2]
    if "position" in name:
        return None
    return TEXT_INPUTS[0] if "ids" in name or "token" in name else None
