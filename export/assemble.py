"""From an fp32 graph and its evidence to the twin's files, one per precision.

The one path of runs and imports: gate, calibration, report, manifest, bytes. Classes stay apart:
those of `calibrate` set the thresholds, those of `report` only measure, and both pass through
onnxruntime, which is what will serve. Every precision is calibrated on its own embeddings and
shares the fp32 twin's space. Nothing of the machine (paths, times, names) enters a file, so that
equal inputs give equal bytes. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from twinserve.distance import Embeddings, truncated
from twinserve.errors import ConfigError, GateFailed, TwinserveError
from twinserve.export import fusion, overlap, parity
from twinserve.export.calibrations import MAX_ITEMS, drawn_items
from twinserve.export.evidence import Evidence, Facts, Lowered, Reference, Source
from twinserve.export.fusion import Fuse, Trial
from twinserve.export.reference import reference_of
from twinserve.export.results import results, results_of_links
from twinserve.export.session import PROVIDER, GraphSession, embed_all
from twinserve.export.signature import check_graph, check_tokenizer
from twinserve.manifest import (
    ITEM,
    NAME,
    Calibration,
    ImageInput,
    InputContract,
    Manifest,
    TextInput,
    attach,
    digest_of_graph,
    space_id,
    write_atomically,
)
from twinserve.preprocess import check_contract
from twinserve.train.data import Labelled
from twinserve.train.pairs import PairData, TripletData

PRECISIONS = ("fp32", "fp16", "int8")

Progress = Callable[[str], None]
Lower = Callable[[str, bytes, Reference], Lowered]


def _lower(precision: str, graph: bytes, reference: Reference) -> Lowered:
    from twinserve.export.precision import lower  # brings onnxruntime's quantisation tools

    return lower(precision, graph, reference)


@dataclass(frozen=True, eq=False)
class Assembled:
    """One twin file, ready to be written."""

    precision: str
    manifest: Manifest  # as every reader will see it
    content: bytes


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of the precisions asked for."""

    twins: tuple[Assembled, ...]  # in the order asked for
    refused: Mapping[str, TwinserveError]  # by precision: why there is no file


def assemble(
    graph: bytes,
    facts: Facts,
    source: Source,
    evidence: Evidence,
    precisions: Sequence[str] = PRECISIONS[:1],
    *,
    optimize: bool = False,
    lower: Lower = _lower,
    fuse: Fuse = fusion.fuse,
    progress: Progress = lambda _: None,
) -> Outcome:
    """Make a twin's files, each only if its gate passes.

    Args:
        graph: serialised in fp32, with the inputs of `feed.input_names` and output `embedding`.
        facts: of the twin.
        source: what the graph must repeat.
        evidence: what it is measured on.
        precisions: of `PRECISIONS`; the fp32 graph is gated in any case, since it is what the
            others are made of and held against.
        optimize: whether a fused form of a text twin's fp32 graph is tried, and kept where it
            passes the gate and is faster here; what was measured stands in the report.
        lower: makes and gates the other precisions, of the graph as it was given.
        fuse: makes the fused form.
        progress: is told of each stage in a few words.

    Raises:
        GateFailed: the fp32 graph does not repeat its source.
        ConfigError: a name, version or precision that cannot be.
        DataError: too little to calibrate on, or data that shaped the weights.
        ManifestError: above 2 GB, or a tokenizer that does not fit.
    """
    check_precisions(precisions)
    check_word("name", facts.name)
    check_word("version", facts.version)
    if isinstance(facts.contract, ImageInput):
        check_contract(facts.contract)
    check_graph(graph, facts.contract, facts.dimension)
    check_tokenizer(graph, facts.contract, facts.tokenizer)
    if evidence.calibrate is not None:
        overlap.check(facts.training, evidence.calibrate)
    evidence = dataclasses.replace(
        evidence, calibrate=_drawn(evidence.calibrate), report=_measured(evidence.report)
    )

    progress("passing the gate")
    served, session = graph, GraphSession(graph, facts.contract)
    vectors = parity.check_vectors(source.embed, session, evidence.gate, facts.contract)
    report: dict[str, Any] = {
        "source": source.name,
        "candidate": f"onnxruntime {onnxruntime.__version__} {PROVIDER}",
        "samples": evidence.samples,
    }
    if optimize:
        progress("trying a fused graph")
        fused, trial = _fused(graph, facts, source, evidence, fuse)
        report["optimized"] = trial.to_dict()
        if fused is not None:
            served, vectors = fused
            session = GraphSession(served, facts.contract)
    report["vectors"] = vectors.to_dict()

    progress("calibrating")
    reference = reference_of(session, facts, evidence)
    if reference.calibrate_rows is not None:
        expected = source.embed(reference.calibrate_rows)
        report.update(_decisions(reference, expected, vectors.largest_coordinate))

    made: list[Assembled] = []
    refused: dict[str, TwinserveError] = {}
    for precision in precisions:
        try:
            if precision == "fp32":
                twin = _finished(served, precision, reference.calibrations, report, facts, evidence)
            else:
                progress(f"making {precision}")
                lowered = lower(precision, graph, reference)
                twin = _lowered(lowered, precision, session, reference, evidence)
        except TwinserveError as error:
            if precision == "fp32":
                raise
            refused[precision] = error
        else:
            made.append(twin)
    return Outcome(tuple(made), refused)


def check_precisions(precisions: Sequence[str]) -> None:
    """Refuse an unknown precision, one named twice, or none.

    Raises:
        ConfigError: naming it.
    """
    known = ", ".join(PRECISIONS)
    if not precisions:
        raise ConfigError(f"no precision is named; known ones are {known}")
    for index, precision in enumerate(precisions):
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; known ones are {known}")
        if precision in precisions[:index]:
            raise ConfigError(f"precision {precision} is named twice; name each once")


def check_word(what: str, value: str) -> None:
    """Refuse a name or version that no manifest may hold.

    Raises:
        ConfigError: naming it.
    """
    if not NAME.fullmatch(value):
        raise ConfigError(
            f"the twin's {what} is {value!r}; it may hold letters, digits, '.', '_' and '-', "
            f"up to 128 of them, and begins with a letter or digit; give --{what}"
        )


def paths_for(out: Path, precisions: Sequence[str]) -> dict[str, Path]:
    """Return where each precision's file goes.

    fp32 goes to `out` itself; another precision gets its name before `.onnx`, unless it is the only
    one and `out` has it already.

    Raises:
        ConfigError: several precisions, and a name that says it is one of them.
    """
    check_precisions(precisions)
    stem = out.name.removesuffix(".onnx")
    named = [precision for precision in PRECISIONS if stem.endswith(f".{precision}")]
    if named and list(precisions) != named and named != ["fp32"]:
        raise ConfigError(
            f"{out.name} says that it is {named[0]}, and {', '.join(precisions)} is to be written; "
            f"give --out {stem.removesuffix('.' + named[0])}.onnx"
        )
    return {
        precision: out
        if precision == "fp32" or precision in named
        else out.with_name(f"{stem}.{precision}.onnx")
        for precision in precisions
    }


def write(outcome: Outcome, out: Path) -> dict[str, Path]:
    """Write each file whole, and return where: {precision: path}; an older one is replaced."""
    asked = [*(twin.precision for twin in outcome.twins), *outcome.refused]
    paths = paths_for(out, asked)
    for twin in outcome.twins:
        write_atomically(paths[twin.precision], twin.content)
    return {twin.precision: paths[twin.precision] for twin in outcome.twins}


def _fused(
    graph: bytes, facts: Facts, source: Source, evidence: Evidence, fuse: Fuse
) -> tuple[tuple[bytes, parity.VectorReport] | None, Trial]:
    """Return the fused graph with its gate's report where it is worth keeping, and why."""
    if not isinstance(facts.contract, TextInput):
        return None, Trial(False, "only text twins have transformer operators to fuse")
    try:
        fused = fuse(graph)
        check_graph(fused, facts.contract, facts.dimension)
        session = GraphSession(fused, facts.contract)
        vectors = parity.check_vectors(source.embed, session, evidence.gate, facts.contract)
    except GateFailed as error:
        return None, Trial(False, error.message)
    plain, quick = (GraphSession(model, facts.contract, threads=1) for model in (graph, fused))
    trial = fusion.judge(fusion.speeds(plain, quick, evidence.gate))
    return ((fused, vectors) if trial.kept else None), trial


def _decisions(
    reference: Reference, source: Embeddings, largest_coordinate: float
) -> dict[str, Any]:
    """Hold the decisions on single pairs against the source's, in full and by truncation."""
    found: dict[int, dict[str, Any]] = {}
    for entry in reference.calibrations:
        if entry.aggregation == ITEM and reference.calibrate_embeddings is not None:
            expected, candidate = (
                reference.distances(truncated(embeddings, entry.dimension))
                for embeddings in (source, reference.calibrate_embeddings)
            )
            found[entry.dimension] = parity.check_decisions(
                expected,
                candidate,
                entry.points,
                entry.metric,
                largest_coordinate=largest_coordinate,
            ).to_dict()
    full = found.pop(reference.facts.dimension)
    shorter = {str(dimension): report for dimension, report in found.items()}
    return {"decisions": full, **({"decisions_of_truncations": shorter} if shorter else {})}


def _lowered(
    lowered: Lowered,
    precision: str,
    source: GraphSession,
    reference: Reference,
    evidence: Evidence,
) -> Assembled:
    facts = reference.facts
    check_graph(lowered.model, facts.contract, facts.dimension)
    session = GraphSession(lowered.model, facts.contract)
    limits = parity.LOWERED[precision]
    vectors = parity.check_vectors(source, session, evidence.gate, facts.contract, limits=limits)
    calibrations: tuple[Calibration, ...] = ()
    if reference.calibrate_rows is not None:
        embeddings = embed_all(session, reference.calibrate_rows)
        calibrations = reference.recalibrated(embeddings, precision)
    report = {
        "source": f"fp32 graph, onnxruntime {onnxruntime.__version__} {PROVIDER}",
        "candidate": f"onnxruntime {onnxruntime.__version__} {PROVIDER}",
        "samples": evidence.samples,
        "vectors": vectors.to_dict(),
        **lowered.parity,
    }
    return _finished(lowered.model, precision, calibrations, report, facts, evidence)


def _finished(
    model: bytes,
    precision: str,
    calibrations: Sequence[Calibration],
    report: dict[str, Any],
    facts: Facts,
    evidence: Evidence,
) -> Assembled:
    training = dict(facts.training)
    if evidence.report is not None:
        session = GraphSession(model, facts.contract)
        embeddings = embed_all(session, evidence.report.rows)
        if isinstance(evidence.report, Labelled):
            training["report"] = results(
                embeddings, evidence.report, facts.metric, calibrations, evidence.one_shot
            )
        else:
            training["report"] = results_of_links(
                embeddings, evidence.report, facts.metric, calibrations
            )
    manifest = Manifest(
        name=facts.name,
        version=facts.version,
        modality=_modality(facts.contract),
        input=facts.contract,
        dimension=facts.dimension,
        normalized=facts.normalized,
        metric=facts.metric,
        # Of the fp32 weights in every precision: their embeddings are comparable.
        space_id=space_id(facts.weights_digest, facts.contract, facts.dimension, facts.normalized),
        graph_digest=digest_of_graph(model),
        precision=precision,
        truncations=facts.truncations,
        calibrations=tuple(calibrations),
        parity=report,
        training=training,
        origin=facts.origin,
    )
    content = attach(model, manifest, facts.tokenizer)
    return Assembled(precision, Manifest.from_json(manifest.to_json()), content)


def _modality(contract: InputContract) -> str:
    if isinstance(contract, ImageInput):
        return "image"
    return "text" if isinstance(contract, TextInput) else "tensor"


def _drawn(labelled: Labelled | None) -> Labelled | None:
    if labelled is None or len(labelled) <= MAX_ITEMS:
        return labelled
    return labelled.of_items(drawn_items(labelled.labels))


def _measured(
    report: Labelled | PairData | TripletData | None,
) -> Labelled | PairData | TripletData | None:
    return _drawn(report) if isinstance(report, Labelled) else report
