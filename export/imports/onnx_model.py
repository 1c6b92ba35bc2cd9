"""An ONNX model of any modality: a folder as Optimum writes it, or a file alone.

A folder's configuration answers what its graph cannot tell; for a file alone, flags and guesses do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from twinserve.errors import ConfigError
from twinserve.export.imports import onnx_picture, onnx_text
from twinserve.export.imports.onnx_file import OnnxFile, Port, open_file
from twinserve.export.imports.onnx_vector import import_vectors
from twinserve.export.imports.source import Imported
from twinserve.manifest import TEXT_INPUTS
from twinserve.train.encoders import positions_of
from twinserve.train.pretrained import modules, pictures
from twinserve.train.pretrained.folders import digests, read_json, unit_length_of
from twinserve.train.pretrained.modules import Plan
from twinserve.train.pretrained.settings import Answers, Settings
from twinserve.train.pretrained.tokenizer import (
    FILE,
    as_the_library_cuts,
    pad_id_of,
    read_tokenizer,
    text_contract,
    tokenizer_json,
)

MODALITIES = ("image", "text", "tensor")
# Where Optimum and sentence-transformers put the graph in full precision.
_USUAL_PLACES = ("model.onnx", "onnx/model.onnx")


def find_graph(folder: Path) -> Path | None:
    """Return a folder's ONNX file; None where it has none.

    Raises:
        ConfigError: several, none of which has the usual name.
    """
    for place in _USUAL_PLACES:
        if (folder / place).is_file():
            return folder / place
    found = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if len(found) > 1:
        raise ConfigError(
            f"the folder has {len(found)} ONNX files ({', '.join(file.name for file in found)}); "
            "give the path of the one to import"
        )
    return found[0] if found else None


def import_folder(
    folder: Path, graph: Path, texts: Sequence[str], settings: Settings, answers: Answers
) -> Imported:
    """Make a twin of a folder's graph, its configuration beside it.

    Args:
        folder: with the configuration.
        graph: the ONNX file in it.
        texts: to hold a text twin's tokenizer against the library's own.
        settings: flags.
        answers: is told what was taken.

    Raises:
        ConfigError, DataError, ManifestError: see `onnx_file`, `onnx_text`, `onnx_picture`.
    """
    file = open_file(graph)
    if onnx_text.is_text(file):
        plan = modules.plan_of(folder, settings, answers)
        made = _text(file, plan, texts, settings, answers)
        read = [*plan.files, plan.encoder / FILE]
    elif (folder / pictures.FILE).is_file() and len(file.inputs) == 1:
        config = read_json(folder / pictures.FILE)
        prepared = pictures.stated(config, settings, answers)
        made = onnx_picture.import_pictures(file, prepared, settings, answers, "config.json")
        read = [folder / pictures.FILE]
    else:
        raise ConfigError(
            f"the graph takes {', '.join(map(str, file.inputs))}, and the folder has no "
            f"{pictures.FILE} to say how pictures become that; import {graph.name} alone, with "
            "flags"
        )
    files = [*read, *file.files, folder / "config.json"]
    origin = {
        "kind": "onnx folder",
        **made.origin,
        "files": digests(folder, [entry for entry in files if entry.is_file()]),
    }
    return dataclasses.replace(made, origin=origin)


def import_file(path: Path, texts: Sequence[str], settings: Settings, answers: Answers) -> Imported:
    """Make a twin of an ONNX file alone.

    Args:
        path: of the file.
        texts: to hold a text twin's tokenizer against the library's own.
        settings: flags.
        answers: is told what was taken.

    Raises:
        ConfigError: what the graph cannot tell and no flag says, or a graph that no twin can be.
        DataError, ManifestError: see `onnx_file`.
    """
    file = open_file(path)
    modality = answers.guess(
        "modality", settings.modality, _modality(file), _because(file), "--modality"
    )
    if modality not in MODALITIES:
        raise ConfigError(f"--modality is {modality!r}; known are {', '.join(MODALITIES)}")
    if modality == "text":
        made = _text(file, _plain_plan(path, settings, answers), texts, settings, answers)
    elif len(file.inputs) != 1:
        raise ConfigError(
            f"the graph has {len(file.inputs)} inputs ({'; '.join(map(str, file.inputs))}); "
            f"a twin of modality {modality} has one"
        )
    elif modality == "image":
        made = _pictures(file, file.inputs[0], settings, answers)
    else:
        made = import_vectors(file, settings, answers)
    # The file's own name says nothing of the model, and may say something of its owner.
    found = list(digests(path.parent, file.files).values())
    return dataclasses.replace(made, origin={"kind": "onnx", **made.origin, "files": found})


def _text(
    file: OnnxFile, plan: Plan, texts: Sequence[str], settings: Settings, answers: Answers
) -> Imported:
    if settings.tokenizer is None:
        tokenizer = tokenizer_json(plan.encoder, lower=plan.lower)
        contract = text_contract(
            tokenizer,
            inputs=TEXT_INPUTS[:1],
            max_tokens=1 << 20,
            prompts={},
            default_prompt="",
            pad_id=0,
            settings=Settings(),
            answers=Answers(),
        )
        tokenizer, _ = as_the_library_cuts(
            plan.encoder, tokenizer, contract, list(texts), lower=plan.lower
        )
    else:
        tokenizer = read_tokenizer(settings.tokenizer)
    return onnx_text.import_text(
        file,
        plan,
        tokenizer,
        pad_id_of(plan.encoder, tokenizer),
        positions_of(read_json(plan.encoder / "config.json")),
        settings,
        answers,
    )


def _plain_plan(path: Path, settings: Settings, answers: Answers) -> Plan:
    """A plan for a text graph alone: only flags, and a tokenizer that lies beside it."""
    if settings.tokenizer is None and not (path.parent / FILE).is_file():
        raise ConfigError(
            "the graph takes token ids, and there is no tokenizer.json beside it; "
            "give --tokenizer FILE"
        )
    if settings.tokenizer is None:
        answers.guess("tokenizer", None, FILE, "it lies beside the graph", "--tokenizer")
    normalized = unit_length_of(settings, answers)
    return Plan(
        encoder=path.parent,
        pooling=modules.checked_pooling(settings.pooling) if settings.pooling else (),
        layers=(),
        normalized=normalized,
        lower=False,
        max_tokens=None,
        prompts={},
        default_prompt="",
        similarity=None,
        cut=None,
        matryoshka=None,
        files=(),
    )


def _pictures(file: OnnxFile, port: Port, settings: Settings, answers: Answers) -> Imported:
    if not onnx_picture.is_picture(port):
        raise ConfigError(
            f"the graph takes {port}; pictures are [batch, channels, height, width] or "
            "[batch, height, width, channels] of float or uint8, with 1 or 3 channels: "
            "give --modality tensor"
        )
    _, channels, size = onnx_picture.layout(port)
    prepared = pictures.guessed(
        size,
        channels,
        normalizes_inside=onnx_picture.first_arithmetic(file, port),
        takes_uint8=port.type_name == "uint8",
        settings=settings,
        answers=answers,
    )
    return onnx_picture.import_pictures(file, prepared, settings, answers, "")


def _modality(file: OnnxFile) -> str:
    if onnx_text.is_text(file):
        return "text"
    if len(file.inputs) == 1 and onnx_picture.is_picture(file.inputs[0]):
        return "image"
    return "tensor"


def _because(file: OnnxFile) -> str:
    return f"the graph takes {'; '.join(map(str, file.inputs)) or 'nothing'}"
