"""What a twin's manifest says, as a person wants to read it.

In: a manifest. Out: plain text in aligned columns. Imports neither torch nor onnxruntime, so that
`twinserve inspect` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinserve.export.evidence_text import describe_calibrations
from twinserve.export.layout import (
    anything,
    mapping,
    number_first,
    numbers,
    percent,
    plain,
    rows,
    section,
    words,
)
from twinserve.manifest import ImageInput, InputContract, Manifest, TextInput

_GATE_NAMES = ("source", "candidate", "samples")
_VECTOR_FIGURES = (
    "max_abs_difference",
    "max_cosine_drift",
    "alone_against_batch",
    "limits",
    "inputs",
)
_REPORT_FIGURES = (
    "classes",
    "pairs",
    "triplets",
    "items",
    "equal_error_rate",
    "one_shot",
    "true_accept_rates",
    "at_the_thresholds",
)


def describe(manifest: Manifest, *, training: bool = True) -> str:
    """Return what is in the manifest as text, several lines long and without a final newline.

    Args:
        manifest: what to show, all of it.
        training: also how the twin was trained, some twenty lines.

    Returns:
        Sections with aligned columns.
    """
    sections = [section(f"{manifest.name}@{manifest.version}", rows(_identity(manifest)))]
    sections += describe_calibrations(manifest.calibrations, manifest.dimension)
    if not manifest.calibrations:
        nothing = [
            "none: this twin gives distances, and decides nothing",
            "set its thresholds with `twinserve calibrate`, from labelled data or judged pairs",
        ]
        sections.append(section("Calibration", nothing))
    if manifest.parity:
        sections.append(section("Parity gate", _parity(manifest.parity)))
    if manifest.origin:
        sections.append(section("Origin", anything(manifest.origin)))
    if manifest.training:
        if training:
            sections.append(section("Training", rows(_training(manifest.training))))
        report = manifest.training.get("report")
        if isinstance(report, Mapping):
            sections.append(_report(report))
    return "\n\n".join(sections)


def _identity(manifest: Manifest) -> list[tuple[str, str]]:
    length = "unit length" if manifest.normalized else "any length"
    found = [
        ("modality", manifest.modality),
        *_contract(manifest.input),
        ("embedding", f"{manifest.dimension} numbers, {length}"),
    ]
    if manifest.truncations:
        found.append(("truncations", ", ".join(map(str, manifest.truncations))))
    return [
        *found,
        ("metric", f"{manifest.metric} distance, smaller is closer"),
        ("precision", manifest.precision),
        ("space", manifest.space_id),
        ("graph digest", manifest.graph_digest),
        ("schema", manifest.schema),
    ]


def _contract(contract: InputContract) -> list[tuple[str, str]]:
    if isinstance(contract, ImageInput):
        size = (
            f"{contract.height} x {contract.width} pixels (height x width), "
            f"{contract.color_order}, {contract.resize} by {contract.resample}, "
            f"decoder {contract.decoder}"
        )
        return [("input", size)]
    if isinstance(contract, TextInput):
        beyond = "cut off" if contract.truncate else "refused"
        found = [
            ("input", f"text of up to {contract.max_tokens} tokens, what is beyond is {beyond}"),
            ("graph inputs", f"{', '.join(contract.inputs)}; padded with {contract.pad_id}"),
        ]
        for name, prompt in contract.prompts.items():
            used = " (used where a call names none)" if name == contract.default_prompt else ""
            found.append((f"prompt {name}", f"{prompt!r}{used}"))
        if contract.tokenizer_digest:
            found.append(("tokenizer digest", contract.tokenizer_digest))
        return found
    return [("input", f"{contract.data_type} {list(contract.shape)}")]


def _parity(parity: Mapping[str, Any]) -> list[str]:
    """Lay out the gate's report: what every gate measures in words, the rest as it stands."""
    found = [(key, plain(parity[key])) for key in _GATE_NAMES if key in parity]
    rest = {key: value for key, value in parity.items() if key not in _GATE_NAMES}
    vectors = mapping(rest.get("vectors"))
    if vectors:
        rest = {key: value for key, value in rest.items() if key != "vectors"}
        found += _vectors(vectors)
        others = {key: value for key, value in vectors.items() if key not in _VECTOR_FIGURES}
        rest = {**others, **rest}
    decisions = mapping(rest.get("decisions"))
    if "disagreements" in decisions:
        rest = {key: value for key, value in rest.items() if key != "decisions"}
        text = (
            f"{decisions.get('disagreements')} of {decisions.get('pairs')} pairs differ at "
            f"{decisions.get('operating_points')} operating points, besides "
            f"{decisions.get('turned_by_rounding')} within {decisions.get('rounding')} "
            "of a threshold"
        )
        found.append(("decisions", text))
    return [*rows(found), *([""] if found and rest else []), *anything(rest)]


def _vectors(vectors: Mapping[str, Any]) -> list[tuple[str, str]]:
    limits = mapping(vectors.get("limits"))
    found = []
    for key in ("max_abs_difference", "max_cosine_drift"):
        by_size = numbers(vectors.get(key))
        if by_size:
            sizes = ", ".join(sorted(by_size, key=number_first))
            worst = f"{max(by_size.values())} at batch sizes {sizes} (limit {limits.get(key)})"
            found.append((words(key), worst))
    key = "alone_against_batch"
    if key in vectors:
        found.append((words(key), f"{vectors[key]} (limit {limits.get(key)})"))
    return [*found, ("inputs", str(vectors.get("inputs")))]


def _training(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in training.items():
        if key in ("classes", "pairs", "triplets") and isinstance(value, Mapping):
            found.append((key, ", ".join(f"{count} {part}" for part, count in value.items())))
        elif key == "config" and isinstance(value, Mapping):
            settings = (f"{name}={plain(value[name]).replace(', ', ',')}" for name in value)
            found.append((key, " ".join(settings)))
        elif key == "train_digests":
            kept = "a sample of the training items' digests, which tells data that overlaps them"
            found.append((words(key), kept))
        elif isinstance(value, list):
            found.append((words(key), f"{len(value)} of them"))
        elif key != "report":
            found.append((words(key), plain(value)))
    return found


def _report(report: Mapping[str, Any]) -> str:
    what = next((key for key in ("pairs", "triplets") if key in report), "classes")
    found = [(what, str(report.get(what))), ("items", str(report.get("items")))]
    if isinstance(report.get("equal_error_rate"), float):
        found.append(("equal error rate", percent(report["equal_error_rate"])))
    one_shot = mapping(report.get("one_shot"))
    if one_shot:
        text = (
            f"{percent(one_shot.get('accuracy'))} of {one_shot.get('trials')} trials "
            f"(95 % interval {percent(one_shot.get('low'))} to {percent(one_shot.get('high'))})"
        )
        found.append((f"{one_shot.get('ways')}-way one-shot", text))
    rates = report.get("true_accept_rates")
    for entry in map(mapping, rates if isinstance(rates, list) else []):
        rate = f"TAR at FAR {entry.get('false_accept_rate')}"
        found.append((rate, percent(entry.get("true_accept_rate"))))
    found += [
        (words(key), plain(value)) for key, value in report.items() if key not in _REPORT_FIGURES
    ]
    lines = rows(found)
    at_the_thresholds = report.get("at_the_thresholds")
    if isinstance(at_the_thresholds, list):
        held = [
            entry.get("false_accept_rate", 1.0) <= entry.get("promised_false_accept_rate_upper", 0)
            for entry in map(numbers, at_the_thresholds)
        ]
        lines += [
            "",
            f"The thresholds above, on these {what}: FAR within its bound at {sum(held)} of "
            f"{len(held)} operating points.",
        ]
    return section(f"On the report {what}, which set no threshold", lines)
