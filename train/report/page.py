"""The page itself: sections in the order in which a reader asks.

In: a run with its report classes and what was measured on them. Out: report.html.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from twinserve.manifest import write_atomically
from twinserve.train.change import change_text, measure_text
from twinserve.train.checkpoint import Run
from twinserve.train.data import Labelled
from twinserve.train.held_out import HeldOut
from twinserve.train.intervals import Estimate
from twinserve.train.report import statement
from twinserve.train.report.charts import percent
from twinserve.train.report.exhibits import exhibit
from twinserve.train.report.figures import (
    det_chart,
    distance_chart,
    learning_charts,
    map_chart,
    roc_chart,
    score_chart,
    share_text,
)
from twinserve.train.report.markup import Content, Markup, tag
from twinserve.train.report.shown import Card, Shown
from twinserve.train.retrieval import Retrieval
from twinserve.train.verification import Verification

FILE = "report.html"
_BASELINES = {
    "pixels_one_shot": "nearest neighbour on pixels",
    "bag_of_words_one_shot": "nearest neighbour on bags of words",
    "vectors_one_shot": "nearest neighbour on the vectors as given",
}


def write_page(
    run: Run,
    shown: Shown,
    measured: HeldOut,
    results: dict[str, Any],
    now: datetime.datetime | None = None,
) -> Path:
    """Write report.html into the run's folder, whole or not at all, and return its path.

    Args:
        run: the finished run.
        shown: of its held-out data.
        measured: on it.
        results: of report.json.
        now: the page's date; None takes the clock's.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    title = f"Report on {run.folder.resolve().name}"
    of_classes = measured.judged_pairs == 0
    body = [
        _head(title, shown, measured, now),
        _headline(measured, results),
        _changes(run, measured),
        _correlation(shown, measured),
        _verification(shown, measured),
        _retrieval(measured.retrieval) if of_classes else None,
        _few_shot(measured, results) if of_classes else None,
        _hardest(shown),
        _map(shown),
        _learning(run),
        _statement(run, shown, results),
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


def _head(title: str, shown: Shown, measured: HeldOut, now: datetime.datetime) -> Markup:
    return tag(
        "header",
        tag("h1", title),
        tag(
            "p",
            f"How good the twin is on {shown.lead}{_seen(shown)}. Compared by "
            f"{measured.metric} distance; a match is a distance at or below a threshold.",
            class_="lead",
        ),
        tag("p", tag("time", f"{now:%d %B %Y}", datetime=now.isoformat(timespec="seconds"))),
    )


def _seen(shown: Shown) -> str:
    if not shown.shared:
        return " that it never saw"
    return f", of which {shown.shared:,} hold an item that another part of the data holds too"


def _headline(measured: HeldOut, results: dict[str, Any]) -> Markup:
    tiles: list[Content] = []
    verified, found = measured.verification, measured.retrieval
    if measured.correlation is not None:
        estimate = measured.correlation.spearman
        tiles.append(_tile("Spearman × 100", estimate, "of closeness with scores", unit=""))
    if measured.right_order is not None:
        note = f"{measured.triplets:,} triplets, the positive nearer"
        tiles.append(_tile("right order", measured.right_order, note))
    if measured.recall_of_partners is not None:
        note = "an item's partner is the nearest"
        tiles.append(_tile("recall@1", measured.recall_of_partners, note))
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
    baseline = results.get("baseline")  # of pairs and triplets
    if baseline is not None and not baseline["beaten"]:
        return tag(
            "p",
            f"The twin is no better than {baseline['of']} compared without a twin. Train for "
            "longer, on more pairs, or start from a twin that was trained on more.",
            class_="warning",
        )
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


def _tile(name: str, estimate: Estimate, note: str, unit: str = " %") -> Markup:
    value, interval = share_text(estimate.value), _interval(estimate)
    return tag(
        "div",
        tag("p", name, class_="name"),
        tag("p", value.removesuffix(" %") + unit, class_="value"),
        tag(
            "p",
            interval.removesuffix(" %") + unit if interval else "no interval",
            class_="interval",
        ),
        tag("p", note, class_="note"),
        class_="tile",
    )


def _changes(run: Run, measured: HeldOut) -> Markup | None:
    if not measured.changes:
        return None
    warning = None
    if run.step == 0:
        warning = (
            "The twin is the model as it came: no later step did better on the calibrate part. "
            "Train for longer, at another rate, or on more data."
        )
    elif not any(one.gain > 0 for one in measured.changes):
        warning = (
            "No figure is better beyond its interval: on this data the training cannot be told "
            "from none. Train for longer, or measure on more."
        )
    elif any(one.gain < 0 for one in measured.changes):
        worse = " and ".join(one.figure for one in measured.changes if one.gain < 0)
        warning = f"The training made {worse} worse."
    return _section(
        "What training changed",
        tag(
            "p",
            "The twin as it came, before its first step, and the trained one, on the same rows. "
            "Each resample is measured by both, so that the interval of the difference is narrower "
            "than the two figures' own would suggest.",
        ),
        _table(
            "Before and after",
            ("figure", "as it came", "trained", "difference", "95 % interval"),
            [
                (
                    "Spearman × 100" if one.figure == "Spearman" else one.figure,
                    measure_text(one.figure, one.before),
                    measure_text(one.figure, one.after),
                    change_text(one.difference.value),
                    "–"
                    if one.difference.low is None or one.difference.high is None
                    else f"{change_text(one.difference.low)} to {change_text(one.difference.high)}",
                )
                for one in measured.changes
            ],
        ),
        None if warning is None else tag("p", warning, class_="warning"),
    )


def _correlation(shown: Shown, measured: HeldOut) -> Markup | None:
    if measured.correlation is None:
        return None
    chart = None
    if shown.scored is not None:
        chart = _figure(
            score_chart(*shown.scored, measured.metric, measured.correlation.spearman.value),
            "Distance over score, a mark a pair (of many a thousand of them, drawn at random).",
        )
    return _section(
        "How alike are they?",
        tag(
            "p",
            f"Spearman's rank correlation of closeness with the scores of "
            f"{measured.correlation.pairs:,} pairs: {measured.correlation.spearman.value:.4f}. "
            "Its interval is of 95 %, from a bootstrap over pairs.",
        ),
        chart,
    )


def _verification(shown: Shown, measured: HeldOut) -> Markup | None:
    verified, pairs = measured.verification, shown.pairs
    if verified is None or pairs is None:
        if measured.correlation is not None:
            return None
        if measured.judged_pairs:
            return _section(
                "Are two alike?",
                tag("p", "Nothing to measure: all pairs are judged alike, and error rates take "
                    "pairs of both kinds.", class_="empty"),
            )  # fmt: skip
        return _section(
            "Are two alike?",
            tag("p", "Nothing to measure: this takes genuine and impostor pairs, so two classes "
                "at least, and two items of one of them.", class_="empty"),
        )  # fmt: skip
    if measured.judged_pairs:
        what = (
            f"{verified.genuine_pairs:,} pairs judged the same (genuine) and "
            f"{verified.impostor_pairs:,} judged different (impostor). Bands and intervals are "
            "of 95 %, from a bootstrap over sets of pairs that share no item."
        )
    else:
        what = (
            f"All {verified.genuine_pairs:,} pairs within a class (genuine) and "
            f"{verified.impostor_pairs:,} pairs across classes (impostor). Bands and intervals "
            "are of 95 %, from a bootstrap over classes."
        )
    return _section(
        "Are two alike?",
        tag("p", what),
        tag(
            "div",
            _figure(roc_chart(verified), "ROC: what share of genuine pairs is found at the price "
                    "of which share of false accepts."),
            _figure(det_chart(verified), "DET: both errors on normal deviates; further to the "
                    "lower left is better."),
            class_="two",
        ),
        _figure(
            distance_chart(pairs, measured.metric, verified),
            "Distances of genuine and impostor pairs, each of area one, with the thresholds of "
            "the table.",
        ),
        _rates_table(verified),
    )  # fmt: skip


def _rates_table(verified: Verification) -> Markup:
    if not verified.true_accept_rates:
        return tag(
            "p",
            "There are too few impostor pairs for a table: a rate takes 30 of them behind it.",
            class_="empty",
        )
    return _table(
        "True accept rates at the thresholds of these pairs. A twin file's thresholds come "
        "from the calibrate part instead.",
        ("FAR at most", "TAR", "95 % interval", "threshold"),
        [
            (
                percent(rate.false_accept_rate),
                share_text(rate.true_accept_rate.value),
                _interval(rate.true_accept_rate) or "–",
                "–" if rate.threshold is None else f"{rate.threshold:.4f}",
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


def _hardest(shown: Shown) -> Markup:
    return _section(
        "Where it fails",
        tag("p", shown.hardest),
        [
            [
                tag("h3", heading),
                tag("div", [_card(shown.part, card) for card in cards], class_="cards")
                if cards
                else tag("p", empty, class_="empty"),
            ]
            for heading, empty, cards in shown.cards
        ],
    )


def _card(part: Labelled, card: Card) -> Markup:
    pair = card.pair
    return tag(
        "figure",
        tag("div", exhibit(part, pair.first), exhibit(part, pair.second), class_="pair"),
        tag("figcaption", tag("span", card.caption), " ", tag("b", f"{pair.distance:.4f}")),
        class_="card",
    )


def _map(shown: Shown) -> Markup | None:
    drawn = shown.drawn
    if drawn is None:
        return None
    classes = len({int(shown.part.labels[item]) for item in drawn.items})
    return _section(
        "A map of the space",
        _figure(
            map_chart(drawn, shown.part),
            f"{len(drawn.items)} items of {classes} classes, drawn at random, on their first two "
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


def _statement(run: Run, shown: Shown, results: dict[str, Any]) -> Markup:
    settings = statement.settings(run.config)
    changed = [(key, value) for key, value, other in settings if other]
    return _section(
        "What it was made of",
        _fields("The run", statement.about(run, shown.whole, results)),
        _table(
            f"The split: {'items stand' if shown.shared else 'nothing stands'} in two parts",
            shown.split_head,
            shown.split,
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
    )


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
    return tag("td", text, class_="number" if text.lstrip("+−")[:1].isdigit() else None)


def _fields(caption: str, pairs: Sequence[tuple[str, str]]) -> Markup:
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in pairs]
    return tag("table", tag("caption", caption), tag("tbody", rows), class_="fields")


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = share_text(estimate.low), share_text(estimate.high)
    return f"{low.removesuffix(' %')} to {high}"
