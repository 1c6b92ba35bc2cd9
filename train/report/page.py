"""The page itself: sections in the order in which a reader asks.

In: a run with its report classes and what was measured on them. Out: report.html.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from twinserve.calibration import PairDistances, pair_distances
from twinserve.distance import Embeddings
from twinserve.manifest import write_atomically
from twinserve.train.checkpoint import Run
from twinserve.train.data import Labelled
from twinserve.train.evaluate import measured_items
from twinserve.train.held_out import HeldOut
from twinserve.train.intervals import Estimate
from twinserve.train.report import statement
from twinserve.train.report.charts import percent
from twinserve.train.report.exhibits import class_name, exhibit
from twinserve.train.report.figures import (
    det_chart,
    distance_chart,
    learning_charts,
    map_chart,
    roc_chart,
    share_text,
)
from twinserve.train.report.hardest import HardPair, hardest
from twinserve.train.report.markup import Content, Markup, tag
from twinserve.train.report.space import space_map
from twinserve.train.retrieval import Retrieval
from twinserve.train.verification import Verification

FILE = "report.html"
_PAIRS = 8  # of each kind
_BASELINES = {
    "pixels_one_shot": "nearest neighbour on pixels",
    "bag_of_words_one_shot": "nearest neighbour on bags of words",
    "vectors_one_shot": "nearest neighbour on the vectors as given",
}


def write_page(
    run: Run,
    labelled: Labelled,
    embeddings: Embeddings,
    measured: HeldOut,
    results: dict[str, Any],
    now: datetime.datetime | None = None,
) -> Path:
    """Write report.html into the run's folder, whole or not at all, and return its path.

    Args:
        run: the finished run.
        labelled: its whole data set.
        embeddings: float32 [n, dimension], of the report classes by the run's twin.
        measured: on them.
        results: of report.json.
        now: the page's date; None takes the clock's.
    """
    part = labelled.of_classes(run.splits.report)
    chosen = measured_items(len(part), run.config.seed)
    part, embeddings = part.of_items(chosen), embeddings[chosen]
    now = now or datetime.datetime.now(datetime.UTC)
    title = f"Report on {run.folder.resolve().name}"
    body = [
        _head(title, run, measured, now),
        _headline(measured, results),
        _verification(run, part, embeddings, measured),
        _retrieval(measured.retrieval),
        _few_shot(measured, results),
        _hardest(run, part, embeddings),
        _map(run, part, embeddings),
        _learning(run),
        _statement(run, labelled, results),
        tag(
            "footer",
            tag("p", f"Made by twinserve on {now:%d %B %Y, %H:%M} UTC. docs/evaluation.md of "
                "twinserve defines each figure and names its source."),
        ),
    ]  # fmt: skip
    style = resources.files("twinserve.train.report").joinpath("page.css").read_text("utf-8")
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", Markup(style)),
        ),
        "\n",
        tag("body", tag("main", body)),
        lang="en",
    )
    path = run.folder / FILE
    write_atomically(path, f"<!DOCTYPE html>\n{page}\n".encode())
    return path


def _head(title: str, run: Run, measured: HeldOut, now: datetime.datetime) -> Markup:
    groups = sorted({name.rpartition("/")[0] for name in run.splits.report} - {""})
    of = f" of {', '.join(groups)}" if 0 < len(groups) <= 4 else ""
    return tag(
        "header",
        tag("h1", title),
        tag(
            "p",
            f"How good the twin is on {measured.items:,} items of {measured.classes:,} "
            f"classes{of} that it never saw. Compared by {measured.metric} distance; a match is "
            "a distance at or below a threshold.",
            class_="lead",
        ),
        tag("p", tag("time", f"{now:%d %B %Y}", datetime=now.isoformat(timespec="seconds"))),
    )


def _headline(measured: HeldOut, results: dict[str, Any]) -> Markup:
    tiles: list[Content] = []
    verified, found = measured.verification, measured.retrieval
    if verified is not None:
        tiles.append(_tile("equal error rate", verified.equal_error_rate, "smaller is better"))
        for rate in verified.true_accept_rates[1:2] or verified.true_accept_rates[:1]:
            tiles.append(
                _tile(
                    f"TAR at FAR {percent(rate.false_accept_rate)}",
                    rate.true_accept_rate,
                    "genuine pairs found",
                )
            )
    one_shot = results.get("report", {}).get("one_shot")
    if one_shot:
        estimate = Estimate(one_shot["accuracy"], one_shot["low"], one_shot["high"])
        baseline = next(
            (
                f"{name}: {share_text(results[key])}"
                for key, name in _BASELINES.items()
                if key in results
            ),
            f"{one_shot['trials']:,} trials",
        )
        tiles.append(_tile(f"{one_shot['ways']}-way one-shot", estimate, baseline))
    if found is not None:
        tiles.append(_tile("recall@1", found.recalls[0].recall, "nearest is of the class"))
        tiles.append(_tile("MAP@R", found.mean_average_precision_at_r, "order of all of a class"))
    return _section("In short", tag("div", tiles, class_="tiles"), _warning(results))


def _warning(results: dict[str, Any]) -> Markup | None:
    """Say it where training brought nothing."""
    reached = results.get("report", {}).get("one_shot", {}).get("accuracy")
    for key, name in _BASELINES.items():
        if reached is not None and results.get(key, 0.0) >= reached:
            return tag(
                "p",
                f"The twin is no better than the {name}, which reaches "
                f"{share_text(results[key])} on the same one-shot trials. Train for longer, on "
                "more classes, or start from a twin that was trained on more.",
                class_="warning",
            )
    return None


def _tile(name: str, estimate: Estimate, note: str) -> Markup:
    return tag(
        "div",
        tag("p", name, class_="name"),
        tag("p", share_text(estimate.value), class_="value"),
        tag("p", _interval(estimate) or "no interval", class_="interval"),
        tag("p", note, class_="note"),
        class_="tile",
    )


def _verification(run: Run, part: Labelled, embeddings: Embeddings, measured: HeldOut) -> Markup:
    verified = measured.verification
    if verified is None:
        return _section(
            "Are two alike?",
            tag("p", "Nothing to measure: this takes genuine and impostor pairs, so two classes "
                "at least, and two items of one of them.", class_="empty"),
        )  # fmt: skip
    pairs: PairDistances = pair_distances(embeddings, part.labels, run.twin.metric)
    return _section(
        "Are two alike?",
        tag(
            "p",
            f"All {verified.genuine_pairs:,} pairs within a class (genuine) and "
            f"{verified.impostor_pairs:,} pairs across classes (impostor). Bands and intervals "
            "are of 95 %, from a bootstrap over classes.",
        ),
        tag(
            "div",
            _figure(roc_chart(verified), "ROC: what share of genuine pairs is found at the price "
                    "of which share of false accepts."),
            _figure(det_chart(verified), "DET: both errors on normal deviates; further to the "
                    "lower left is better."),
            class_="two",
        ),
        _figure(
            distance_chart(pairs, run.twin.metric.value, verified),
            "Distances of genuine and impostor pairs, each of area one, with the thresholds of "
            "the table.",
        ),
        _rates_table(verified),
    )  # fmt: skip


def _rates_table(verified: Verification) -> Markup:
    if not verified.true_accept_rates:
        return tag(
            "p",
            "No false accept rate has 30 impostor pairs behind it, so that none has a row here.",
            class_="empty",
        )
    return _table(
        "True accept rates at the thresholds of these classes. A twin file's thresholds come "
        "from the calibrate classes instead.",
        ("FAR at most", "TAR", "95 % interval", "threshold"),
        [
            (
                percent(rate.false_accept_rate),
                share_text(rate.true_accept_rate.value),
                _interval(rate.true_accept_rate) or "–",
                f"{rate.threshold:.4f}",
            )
            for rate in verified.true_accept_rates
        ],
    )


def _retrieval(found: Retrieval | None) -> Markup:
    if found is None:
        return _section(
            "Who is this closest to?",
            tag("p", "Nothing to measure: no class has two items.", class_="empty"),
        )
    rows = [
        (f"recall@{one.k}", one.recall, f"an item of the class among the nearest {one.k}")
        for one in found.recalls
    ]
    rows += [
        ("R-precision", found.r_precision, "share of the class among the nearest R"),
        ("MAP@R", found.mean_average_precision_at_r, "likewise, right ones in front count more"),
    ]
    return _section(
        "Who is this closest to?",
        tag(
            "p",
            f"{found.queries:,} queries, each among the {found.gallery - 1:,} other items. R is "
            "the number of other items of the query's class.",
        ),
        _table(
            "Retrieval",
            ("figure", "value", "95 % interval", "meaning"),
            [
                (name, share_text(one.value), _interval(one) or "–", meaning)
                for name, one, meaning in rows
            ],
        ),
    )


def _few_shot(measured: HeldOut, results: dict[str, Any]) -> Markup:
    if not measured.few_shot:
        return _section(
            "Which of N classes is this?",
            tag("p", "Nothing to measure: this takes two classes, and one item more of one of "
                "them than there are shots.", class_="empty"),
        )  # fmt: skip
    rows = [
        (
            f"{one.ways}-way {one.shots}-shot",
            one.rule,
            share_text(one.accuracy.value),
            _interval(one.accuracy) or "–",
            f"{one.trials:,}",
            " · ".join(share_text(value) for value in one.by_seed),
        )
        for one in measured.few_shot
    ]
    baseline = ""
    for key, name in _BASELINES.items():
        if key in results:
            baseline = (
                f" On the one-shot trials of the first seed, which are those of report.json, "
                f"{name} reaches {share_text(results[key])} without a twin."
            )
    return _section(
        "Which of N classes is this?",
        tag(
            "p",
            "A probe, and k known items of each of N classes of one group: which class is it of? "
            "Intervals are Wilson's over trials; trials share classes, so that other classes "
            f"would spread wider.{baseline}",
        ),
        _table(
            "N-way k-shot identification",
            ("trials of", "decided by", "right", "95 % interval", "trials", "by seed"),
            rows,
        ),
    )


def _hardest(run: Run, part: Labelled, embeddings: Embeddings) -> Markup:
    genuine, impostor = hardest(embeddings, part.labels, run.twin.metric, _PAIRS)
    return _section(
        "Where it fails",
        tag("p", "The hardest pairs, at most one of a class or of two classes."),
        tag("h3", "Farthest genuine pairs"),
        _cards(part, genuine, "No class has two items."),
        tag("h3", "Nearest impostor pairs"),
        _cards(part, impostor, "There is one class alone."),
    )


def _cards(part: Labelled, pairs: Sequence[HardPair], empty: str) -> Markup:
    if not pairs:
        return tag("p", empty, class_="empty")
    return tag("div", [_card(part, pair) for pair in pairs], class_="cards")


def _card(part: Labelled, pair: HardPair) -> Markup:
    names = [class_name(part, item) for item in (pair.first, pair.second)]
    if len(part.group_names) == 1:  # which would say nothing
        names = [name.rpartition("/")[2] for name in names]
    said = names[0] if names[0] == names[1] else f"{names[0]} and {names[1]}"
    return tag(
        "figure",
        tag("div", exhibit(part, pair.first), exhibit(part, pair.second), class_="pair"),
        tag("figcaption", tag("span", said), " ", tag("b", f"{pair.distance:.4f}")),
        class_="card",
    )


def _map(run: Run, part: Labelled, embeddings: Embeddings) -> Markup:
    drawn = space_map(embeddings, part.labels, run.twin.metric, seed=run.config.seed)
    shown = len({int(part.labels[item]) for item in drawn.items})
    return _section(
        "A map of the space",
        _figure(
            map_chart(drawn, part),
            f"{len(drawn.items)} items of {shown} classes, drawn at random, on their first two "
            f"principal components. These hold {share_text(drawn.explained)} of the variance: "
            "what overlaps here may lie apart in the space.",
        ),
    )


def _learning(run: Run) -> Markup | None:
    charts = learning_charts(run.folder / "log.csv", run.step)
    if not charts:
        return None
    return _section(
        "How it learnt",
        tag("div", [tag("figure", tag("figcaption", title), chart) for title, chart in charts],
            class_="two"),
    )  # fmt: skip


def _statement(run: Run, labelled: Labelled, results: dict[str, Any]) -> Markup:
    parts = statement.parts(labelled, run)
    settings = statement.settings(run.config)
    changed = [(key, value) for key, value, other in settings if other]
    return _section(
        "What it was made of",
        _fields("The run", statement.about(run, labelled, results)),
        _table(
            "The split: no class stands in two parts",
            ("part", "classes", "items", "items of a class", "use", "groups"),
            [
                (
                    one.name,
                    f"{one.classes:,}",
                    f"{one.items:,}",
                    f"{one.smallest}" if one.smallest == one.largest
                    else f"{one.smallest} to {one.largest}",
                    one.use,
                    _some(one.groups),
                )
                for one in parts
            ],
        ),
        tag(
            "div",
            tag("div", _fields("Settings other than the defaults", changed)),
            tag("div", _fields("Versions", statement.versions())),
            class_="two",
        ),
        tag(
            "details",
            tag("summary", f"All {len(settings)} settings"),
            _fields("Every setting of the run", [(key, value) for key, value, _ in settings]),
        ),
    )  # fmt: skip


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "–"


def _section(title: str, *content: Content, class_: str | None = None) -> Markup:
    return tag("section", tag("h2", title), content, class_=class_)


def _figure(chart: Markup, caption: str) -> Markup:
    return tag("figure", chart, tag("figcaption", caption))


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", [tag("th", name, scope="col") for name in head])),
            tag(
                "tbody",
                [
                    tag("tr", tag("th", row[0], scope="row"), [_cell(text) for text in row[1:]])
                    for row in rows
                ],
            ),
        ),
        class_="wide",
    )


def _cell(text: str) -> Markup:
    return tag("td", text, class_="number" if text[:1].isdigit() else None)


def _fields(caption: str, pairs: Sequence[tuple[str, str]]) -> Markup:
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in pairs]
    return tag("table", tag("caption", caption), tag("tbody", rows), class_="fields")


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = share_text(estimate.low), share_text(estimate.high)
    return f"{low.removesuffix(' %')} to {high}"
