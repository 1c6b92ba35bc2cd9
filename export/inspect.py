"""What a twin's manifest says, as a person wants to read it.

In: a manifest. Out: plain text in aligned columns. Imports neither torch nor onnxruntime, so that
`twinserve inspect` answers at once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from twinserve.manifest import (
    Calibration,
    ImageInput,
    InputContract,
    Manifest,
    OperatingPoint,
    TextInput,
)

WIDTH = 100
SHOWN_RATES = (0.1, 0.01, 0.001)
# A point that stands for a rate lies within half a step of the calibration's grid below it.
_NEAR_ENOUGH = 0.8


def describe(manifest: Manifest) -> str:
    """Return everything in the manifest as text, several lines long and without a final newline."""
    sections = [
        _section(f"{manifest.name}@{manifest.version}", _rows(_identity(manifest))),
        *(_calibration(entry, manifest) for entry in manifest.calibrations),
    ]
    if not manifest.calibrations:
        sections.append(
            _section("Calibration", ["none: this twin gives distances, and decides nothing"])
        )
    if manifest.parity:
        sections.append(_section("Parity gate", _rows(_parity(manifest.parity))))
    if manifest.training:
        sections.append(_section("Training", _rows(_training(manifest.training))))
        report = manifest.training.get("report")
        if isinstance(report, Mapping):
            sections.append(_report(report))
    return "\n\n".join(sections)


def _identity(manifest: Manifest) -> list[tuple[str, str]]:
    length = "unit length" if manifest.normalized else "any length"
    rows = [
        ("modality", manifest.modality),
        ("input", _contract(manifest.input)),
        ("embedding", f"{manifest.dimension} numbers, {length}"),
    ]
    if manifest.truncations:
        rows.append(("truncations", ", ".join(map(str, manifest.truncations))))
    return [
        *rows,
        ("metric", f"{manifest.metric} distance, smaller is closer"),
        ("precision", manifest.precision),
        ("space", manifest.space_id),
        ("graph digest", manifest.graph_digest),
        ("schema", manifest.schema),
    ]


def _contract(contract: InputContract) -> str:
    if isinstance(contract, ImageInput):
        return (
            f"{contract.height} x {contract.width} pixels (height x width), "
            f"{contract.color_order}, {contract.resize} by {contract.resample}, "
            f"decoder {contract.decoder}"
        )
    if isinstance(contract, TextInput):
        beyond = "cut off" if contract.truncate else "refused"
        prompts = f", prompts {', '.join(contract.prompts)}" if contract.prompts else ""
        return f"text of up to {contract.max_tokens} tokens, what is beyond is {beyond}{prompts}"
    return f"{contract.data_type} {list(contract.shape)}"


def _calibration(calibration: Calibration, manifest: Manifest) -> str:
    rows = [
        (
            "measured on",
            f"{calibration.classes} classes, {calibration.genuine_pairs} genuine and "
            f"{calibration.impostor_pairs} impostor pairs",
        ),
        ("equal error rate", _percent(calibration.equal_error_rate)),
        ("default rate", f"FAR {calibration.default_far:.3g}"),
        (
            "likelihood ratio",
            f"ln LR = {calibration.intercept:.3f} - {calibration.slope:.3f} x distance "
            f"(even at {_even(calibration)})",
        ),
    ]
    if calibration.data_digest:
        rows.append(("data digest", calibration.data_digest))
    title = f"Calibration of {calibration.precision}"
    if calibration.dimension != manifest.dimension:
        title += f", first {calibration.dimension} numbers"
    if calibration.aggregation != "item":
        title += f", by {calibration.aggregation}"
    return _section(title, [*_rows(rows), "", *_points(calibration)])


def _even(calibration: Calibration) -> str:
    if calibration.slope == 0.0:
        return "no distance: they tell nothing"
    return f"distance {calibration.intercept / calibration.slope:.4f}"


def _points(calibration: Calibration) -> list[str]:
    head = ("FAR asked", "FAR measured", "95 % bound", "TAR", "threshold")
    return _table(head, [_point_row(rate, calibration.points) for rate in SHOWN_RATES])


def _point_row(rate: float, points: Sequence[OperatingPoint]) -> tuple[str, ...]:
    fitting = [
        point
        for point in points
        if rate * _NEAR_ENOUGH <= point.false_accept_rate <= rate * (1 + 1e-9)
    ]
    point = max(fitting, key=lambda point: point.false_accept_rate, default=None)
    if point is None:
        return (f"{rate:g}", "too little evidence", "", "", "")
    return (
        f"{rate:g}",
        f"{point.false_accept_rate:.3g}",
        f"{point.false_accept_rate_upper:.3g}",
        _percent(point.true_accept_rate),
        f"{point.threshold:.4f}",
    )


def _parity(parity: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, str(parity[key])) for key in ("source", "candidate") if key in parity]
    vectors = parity.get("vectors")
    if isinstance(vectors, Mapping):
        limits = _mapping(vectors.get("limits"))
        for key in ("max_abs_difference", "max_cosine_drift"):
            by_size = _numbers(vectors.get(key))
            if by_size:
                worst = max(by_size.values())
                sizes = ", ".join(sorted(by_size, key=_number_first))
                rows.append(
                    (_words(key), f"{worst} at batch sizes {sizes} (limit {limits.get(key)})")
                )
        if "alone_against_batch" in vectors:
            rows.append(
                (
                    "alone against batch",
                    f"{vectors['alone_against_batch']} (limit {limits.get('alone_against_batch')})",
                )
            )
        rows.append(("inputs", str(vectors.get("inputs"))))
    decisions = parity.get("decisions")
    if isinstance(decisions, Mapping):
        rows.append(
            (
                "decisions",
                f"{decisions.get('disagreements')} of {decisions.get('pairs')} pairs differ at "
                f"{decisions.get('operating_points')} operating points, besides "
                f"{decisions.get('turned_by_rounding')} within {decisions.get('rounding')} "
                "of a threshold",
            )
        )
    return rows


def _training(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in training.items():
        if key == "classes" and isinstance(value, Mapping):
            rows.append((key, ", ".join(f"{count} {part}" for part, count in value.items())))
        elif isinstance(value, str | int | float):
            rows.append((_words(key), str(value)))
        elif isinstance(value, list):
            rows.append((_words(key), f"{len(value)} of them"))
    settings = training.get("config")
    if isinstance(settings, Mapping):
        rows.append(("config", " ".join(f"{key}={_plain(settings[key])}" for key in settings)))
    return rows


def _report(report: Mapping[str, Any]) -> str:
    rows = [("classes", str(report.get("classes"))), ("items", str(report.get("items")))]
    if isinstance(report.get("equal_error_rate"), float):
        rows.append(("equal error rate", _percent(report["equal_error_rate"])))
    one_shot = _mapping(report.get("one_shot"))
    if one_shot:
        rows.append(
            (
                f"{one_shot.get('ways')}-way one-shot",
                f"{_percent(one_shot.get('accuracy'))} of {one_shot.get('trials')} trials "
                f"(95 % interval {_percent(one_shot.get('low'))} "
                f"to {_percent(one_shot.get('high'))})",
            )
        )
    rates = report.get("true_accept_rates")
    for rate in rates if isinstance(rates, list) else []:
        entry = _mapping(rate)
        rows.append(
            (
                f"TAR at FAR {entry.get('false_accept_rate')}",
                _percent(entry.get("true_accept_rate")),
            )
        )
    lines = _rows(rows)
    at_the_thresholds = report.get("at_the_thresholds")
    if isinstance(at_the_thresholds, list):
        held = [
            entry.get("false_accept_rate", 1.0) <= entry.get("promised_false_accept_rate_upper", 0)
            for entry in map(_numbers, at_the_thresholds)
        ]
        lines += [
            "",
            f"The thresholds above, on these classes: FAR within its bound at {sum(held)} of "
            f"{len(held)} operating points.",
        ]
    return _section("On the report classes, which set no threshold", lines)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(key) for key, _ in rows), default=0)
    lines = []
    for key, value in rows:
        first, *others = textwrap.wrap(value, WIDTH - width - 4) or [""]
        lines += [f"{key:<{width}}  {first}", *(f"{'':<{width}}  {other}" for other in others)]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = (head, *rows)
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in lines
    ]


def _percent(value: object) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else "unknown"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(value: object) -> dict[str, float]:
    return {k: v for k, v in _mapping(value).items() if isinstance(v, int | float)}


def _words(key: str) -> str:
    return key.replace("_", " ")


def _number_first(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (1 << 62, text)


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
