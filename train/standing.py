"""How a twin stands on the calibrate part, by which the best one of a training is chosen.

In: a twin. Out: a `Standing`, which can be compared with those of other steps. Of classes the
one-shot accuracy chooses (then the lowest EER), of pairs and triplets what their judgements allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twinserve.distance import Embeddings, Metric
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.evaluate import Report, embed, evaluate
from twinserve.train.judged import COLUMNS, JudgedFigures, figures_of, kind_of_judgements
from twinserve.train.material import LinkMaterial, Material
from twinserve.train.twins import Twin


@dataclass(frozen=True)
class Standing:
    """How good a twin is at one step."""

    rank: tuple[float, ...]  # the better twin has the greater one
    columns: tuple[float, ...]  # of log.csv
    said: str  # in a line
    results: dict[str, Any]  # plain values for the checkpoint


@dataclass(frozen=True)
class Calibrating:
    """The calibrate part, ready to measure twins on."""

    columns: tuple[str, ...]  # names of what a standing has for log.csv
    standing: Callable[[Twin], Standing]


def calibrating(material: Material | LinkMaterial, config: TrainConfig) -> Calibrating:
    """Take the calibrate part of some material."""
    if isinstance(material, LinkMaterial):
        links = material.data.of_rows(material.splits.calibrate)
        return Calibrating(
            COLUMNS[kind_of_judgements(links)],
            lambda twin: _of_links(figures_of(embed(twin, links.rows), links, twin.metric)),
        )
    part = material.labelled.of_classes(material.splits.calibrate)
    return Calibrating(
        ("one_shot", "equal_error_rate"),
        lambda twin: _of_classes(evaluate_part(twin, part, config)),
    )


def evaluate_part(twin: Twin, part: Labelled, config: TrainConfig) -> Report:
    """Embed a part of the split and measure it, with the config's one-shot trials."""
    return evaluated(embed(twin, part.rows), part, twin.metric, config)


def evaluated(
    embeddings: Embeddings, part: Labelled, metric: Metric, config: TrainConfig
) -> Report:
    """Measure a part, embedded as float32 [n, dimension], with the config's one-shot trials."""
    return evaluate(
        embeddings,
        part.labels,
        part.groups,
        metric,
        ways=config.one_shot_ways,
        trials=config.one_shot_trials,
        seed=config.seed,
    )


def _of_classes(report: Report) -> Standing:
    accuracy, eer = report.one_shot.accuracy, report.equal_error_rate
    return Standing(
        rank=(accuracy, -eer),
        columns=(accuracy, eer),
        said=f"one-shot {accuracy:.1%}, EER {eer:.1%}",
        results=report.to_dict(),
    )


def _of_links(figures: JudgedFigures) -> Standing:
    values = tuple(figures.values.values())
    return Standing(figures.rank, values, str(figures), figures.to_dict())
