"""`twinserve import`: from a model made elsewhere to twin files.

In: a path and flags. Out: files, each written only if its gate passes, and the answers that were
taken for what the model's own files leave open. Tells the kinds apart; each has a module of its
own. From there it is the one path of runs and imports (export.assemble).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from twinserve.errors import ConfigError, DataError
from twinserve.export.assemble import (
    PRECISIONS,
    Outcome,
    Progress,
    assemble,
    check_word,
    paths_for,
    write,
)
from twinserve.export.evidence import Evidence, Facts
from twinserve.export.imports import (
    onnx_model,
    picture_folder,
    samples,
    text_folder,
)
from twinserve.export.imports.source import Imported
from twinserve.export.labelled import read_labelled
from twinserve.export.pairs import read_pairs
from twinserve.feed import Rows
from twinserve.manifest import TextInput
from twinserve.tokens import Tokenizer
from twinserve.train.data import Labelled, take
from twinserve.train.pretrained import modules
from twinserve.train.pretrained.folders import weight_files
from twinserve.train.pretrained.picture import is_vision
from twinserve.train.pretrained.settings import Answer, Answers, Settings

VERSION_DIGITS = 12


@dataclass(frozen=True)
class Measure:
    """What an import is measured on; all of it may be left out."""

    data: Path | None = None  # labelled items
    pairs: Path | None = None  # judged pairs
    same_above: float | None = None  # of pairs with scores
    samples: Path | None = None  # inputs for the gate alone


@dataclass(frozen=True, eq=False)
class Import:
    """What came of an import."""

    outcome: Outcome
    paths: dict[str, Path] = field(default_factory=dict)  # by precision


def import_model(
    path: Path,
    out: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    precisions: Sequence[str] = PRECISIONS[:1],
    settings: Settings | None = None,
    measure: Measure | None = None,
    progress: Progress = lambda _: None,
    tell: Callable[[Sequence[Answer]], None] = lambda _: None,
) -> Import:
    """Make twin files of a model made elsewhere.

    Args:
        path: a folder of sentence-transformers, transformers or Optimum, or an ONNX file.
        out: the file to write; see `assemble.paths_for` for those of other precisions.
        name: of the twin; the file's own name when not given.
        version: of the twin; the first digits of its digest when not given.
        precisions: of `assemble.PRECISIONS`.
        settings: flags.
        measure: data for thresholds and the gate.
        progress: is told of each stage in a few words.
        tell: is given what was taken for each open question, before the work begins.

    Raises:
        ConfigError: flags that do not fit, or a model that no twin can be, with what to do.
        DataError: nothing there, or nothing that can be read.
        ManifestError: not ONNX, above 2 GB, or a tokenizer that does not fit.
        GateFailed: the file would not repeat the model; nothing was written.
    """
    settings = Settings() if settings is None else settings
    measure = Measure() if measure is None else measure
    paths_for(out, precisions)
    name = out.name.split(".")[0] if name is None else name
    check_word("name", name)
    if version is not None:
        check_word("version", version)
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent} to write {out.name} into; make it")
    if measure.data is not None and measure.pairs is not None:
        raise ConfigError("--data and --pairs both set thresholds; give one of them")

    progress("reading the model")
    answers = Answers()
    try:
        made = read_model(path, measure, settings, answers)
    finally:
        tell(answers.given)
    evidence = _evidence(made, measure, progress)
    outcome = assemble(
        made.graph,
        Facts(
            name=name,
            version=made.weights_digest[:VERSION_DIGITS] if version is None else version,
            contract=made.contract,
            dimension=made.dimension,
            metric=made.metric,
            normalized=made.normalized,
            weights_digest=made.weights_digest,
            truncations=made.truncations,
            tokenizer=made.tokenizer,
            origin=made.origin,
        ),
        made.source,
        evidence,
        precisions,
        progress=progress,
    )
    progress("writing the files")
    return Import(outcome, write(outcome, out))


def read_model(path: Path, measure: Measure, settings: Settings, answers: Answers) -> Imported:
    """Tell what kind of model lies there, and bring it into a twin's form.

    Raises:
        DataError: nothing that is known.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a model's folder, or an ONNX file")
    texts = samples.TEXTS
    if path.is_file():
        return onnx_model.import_file(path, texts, settings, answers)
    if settings.modality is not None:
        raise ConfigError("--modality is for an ONNX file alone; a folder says what it is")
    encoder = modules.encoder_folder(path)
    if weight_files(encoder):
        if not modules.is_sentence_transformer(path) and is_vision(path):
            return picture_folder.import_folder(path, settings, answers)
        if (encoder / "config.json").is_file():
            return text_folder.import_folder(path, texts, settings, answers)
    graph = onnx_model.find_graph(path)
    if graph is not None:
        return onnx_model.import_folder(path, graph, texts, settings, answers)
    raise DataError(
        f"{path} is no model that is known: it has neither config.json with weights "
        "(model.safetensors or pytorch_model.bin) nor an ONNX file; give the folder that "
        "sentence-transformers, transformers or Optimum saved"
    )


def _evidence(made: Imported, measure: Measure, progress: Progress) -> Evidence:
    tokenizer = None
    if isinstance(made.contract, TextInput) and made.tokenizer is not None:
        tokenizer = Tokenizer(made.tokenizer, made.contract)
    labelled: Labelled | None = None
    pairs = None
    if measure.data is not None:
        progress("reading the data")
        labelled = read_labelled(measure.data, made.contract, tokenizer)
    if measure.pairs is not None:
        progress("reading the pairs")
        pairs = read_pairs(measure.pairs, made.contract, tokenizer, same_above=measure.same_above)
    rows: Rows
    if measure.samples is None and labelled is not None:
        rows, origin = _some(labelled.rows), samples.OWN_DATA
    elif measure.samples is None and pairs is not None:
        rows, origin = _some(pairs.rows), samples.OWN_DATA
    else:
        rows, origin = samples.rows_for(made.contract, tokenizer, measure.samples)
    return Evidence(gate=rows, samples=origin, calibrate=labelled, pairs=pairs, kind="labels")


def _some(rows: Rows) -> Rows:
    return take(rows, np.random.default_rng(0).permutation(len(rows))[: samples.MOST])
