"""report.html: whole and alone in one file, its figures those of report.json, all text escaped."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train import drawings, questions
from twinserve.distance import Metric, pairwise
from twinserve.train.checkpoint import Run
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.evaluate import embed
from twinserve.train.held_out import HeldOut, measure, measure_pairs
from twinserve.train.loop import train
from twinserve.train.report.charts import decades, linear, shares
from twinserve.train.report.exhibits import class_name, data_uri, exhibit
from twinserve.train.report.figures import learning_charts, share_text
from twinserve.train.report.hardest import hardest, hardest_judged
from twinserve.train.report.markup import Markup, joined, tag
from twinserve.train.report.page import write_page
from twinserve.train.report.shown import of_classes, of_pairs
from twinserve.train.report.space import space_map
from twinserve.train.report.statement import settings

QUICK = TrainConfig(
    ink_inverted=True,
    width=8,
    dimension=8,
    classes_per_batch=6,
    max_steps=4,
    evaluate_every=2,
    one_shot_ways=5,
    one_shot_trials=60,
    calibrate_fraction=0.3,
    report_fraction=0.4,
)
EVIL = "<b>&\"evil'</b><script>alert(1)</script>"


@dataclass
class Read(HTMLParser):
    """A page as read strictly: every element closed by its own end tag, in order."""

    text: str
    open: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.text)
        self.close()
        assert self.open == [], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(folder: Path) -> Read:
    return Read((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    content = drawings.files(groups=1, classes=20, items=6)
    data = drawings.write_zip(tmp_path_factory.mktemp("data") / "set.zip", content)
    out = tmp_path_factory.mktemp("run")
    return train(dataclasses.replace(QUICK, data=str(data), out=str(out)), progress=False)


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = [(f"{text} <i>&amp;", f"{EVIL}{label}") for text, label in questions.rows()]
    folder = tmp_path_factory.mktemp("texts")
    data = questions.write_csv(folder / "questions.csv", rows, ("text", "label"))
    config = dataclasses.replace(
        QUICK, data=str(data), out=str(folder / "run"), twin="words", ink_inverted=False
    )
    with pytest.MonkeyPatch.context() as patch:
        for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
            patch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)
        return train(config, progress=False)


def test_the_page_is_whole_and_needs_nothing_else(run: Run) -> None:
    page = read(run.folder)
    assert page.text.startswith("<!DOCTYPE html>\n<html lang=")
    names = {name for name, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "a"})
    assert "://" not in page.text
    assert "url(" not in page.text
    assert "@import" not in page.text
    for picture in page.all("img"):
        assert (picture["src"] or "").startswith("data:image/")
    for picture in page.all("image"):
        assert (picture["href"] or "").startswith("data:image/png;base64,")
    assert not any(key.startswith("on") for _, given in page.elements for key in given)


def test_pictures_are_those_of_the_run(run: Run) -> None:
    page = read(run.folder)
    # The 8 classes of the report: each once for its farthest pair, and 8 impostor pairs.
    assert len(page.all("img")) == 2 * (8 + 8)
    part = run.part("report")
    known = {np.asarray(row)[:, :, 0].tobytes() for row in part.rows}
    for picture in page.all("img"):
        content = base64.b64decode((picture["src"] or "").partition(",")[2])
        with Image.open(BytesIO(content)) as opened:
            assert np.asarray(opened).tobytes() in known
        assert (picture["alt"] or "").partition(": ")[2] in part.names


def test_it_can_be_read_without_seeing_it(run: Run) -> None:
    page = read(run.folder)
    assert all(picture.get("alt") for picture in page.all("img"))
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    charts = page.all("svg")
    assert len(charts) == 8  # ROC, DET, distances, map, four of learning
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(ids)
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert [name for name, _ in page.elements if name == "h1"] == ["h1"]
    assert re.search(r"prefers-color-scheme: dark", page.text)
    assert "@media print" in page.text


def test_its_figures_are_those_of_report_json_and_evaluation_json(run: Run) -> None:
    report = json.loads((run.folder / "report.json").read_text())["report"]
    measured = HeldOut.load(run.folder)
    verified, found = measured.verification, measured.retrieval
    assert verified is not None
    assert found is not None
    assert verified.equal_error_rate.value == report["equal_error_rate"]
    assert (verified.genuine_pairs, verified.impostor_pairs) == (
        report["genuine_pairs"],
        report["impostor_pairs"],
    )
    assert [
        (one.false_accept_rate, one.true_accept_rate.value) for one in verified.true_accept_rates
    ] == [
        (one["false_accept_rate"], one["true_accept_rate"]) for one in report["true_accept_rates"]
    ]
    assert measured.few_shot[0].by_seed[0] == report["one_shot"]["accuracy"]
    said = read(run.folder).said
    for name, value in (
        ("equal error rate", report["equal_error_rate"]),
        ("5-way one-shot", report["one_shot"]["accuracy"]),
        ("recall@1", found.recalls[0].recall.value),
        ("MAP@R", found.mean_average_precision_at_r.value),
    ):
        assert f"{name} {share_text(value)}" in said
    assert f"{report['impostor_pairs']:,} pairs across classes" in said
    for one in measured.few_shot:
        assert share_text(one.accuracy.value) in said


def test_it_states_the_data_the_split_the_settings_and_the_versions(run: Run) -> None:
    said = read(run.folder).said
    assert run.data_digest in said
    assert "120 items of 20 classes" in said
    for part, count in (("train", 6), ("calibrate", 6), ("report", 8)):
        assert f"{part} {count} {6 * count} 6 " in said
    assert "one_shot_ways 5" in said
    assert "numpy" in said
    assert f"step {run.step}" in said


def test_a_setting_that_was_left_alone_is_not_shown_as_changed() -> None:
    changed = [key for key, _, other in settings(TrainConfig(width=32)) if other]
    assert changed == ["width"]


def test_texts_and_class_names_are_shown_as_they_are_and_never_as_markup(of_texts: Run) -> None:
    page = read(of_texts.folder)
    assert "<script" not in page.text
    assert "<b>&" not in page.text
    assert EVIL in page.said
    part = of_texts.part("report")
    shown = [text for text in part.names if " ".join(text.split()) in page.said]
    assert len(shown) >= 4
    assert all("<i>&amp;" in text for text in shown)


def test_vectors_are_shown_by_their_names() -> None:
    rows = np.zeros((2, 3), np.float32)
    part = Labelled(rows, np.arange(2), ("a", "b"), ("row 7", "row <8>"))
    assert exhibit(part, 1) == '<p class="text">vector row &lt;8&gt;</p>'
    assert class_name(part, 1) == "b"


def rewritten(run: Run, folder: Path, classes: int) -> Read:
    """Write the page of a run whose report has so many classes, elsewhere."""
    few = dataclasses.replace(run.splits, report=run.splits.report[:classes])
    other = Run(folder, run.twin, run.config, few, run.results, run.data_digest, run.step)
    part = run.labelled.of_classes(few.report)
    embeddings = embed(run.twin, part.rows)
    measured = measure(embeddings, part.labels, None, run.twin.metric, ways=5, trials=20)
    now = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    shown = of_classes(other, run.labelled, embeddings, measured)
    write_page(other, shown, measured, {}, now)
    return read(folder)


def test_one_class_without_impostors_and_a_run_without_a_log_make_a_page(
    run: Run, tmp_path: Path
) -> None:
    page = rewritten(run, tmp_path, classes=1)
    assert "takes genuine and impostor pairs" in page.said
    assert "There is one class alone." in page.said
    assert "no interval" in page.said
    assert [chart["class"] for chart in page.all("svg")] == ["chart"]  # the map
    assert "2 January 2026" in page.said.replace("02 January", "2 January")


@pytest.mark.parametrize("scored", [True, False])
def test_judged_pairs_have_a_page_too(of_texts: Run, tmp_path: Path, scored: bool) -> None:
    part = of_texts.part("report")
    generator = np.random.default_rng(0)
    members = generator.permutation(len(part))[:24].reshape(12, 2)
    targets = generator.integers(6, size=12) / 5 if scored else np.arange(12) % 2.0
    embeddings = embed(of_texts.twin, part.rows)
    components = np.full(len(part), 99)
    components[members] = np.arange(12)[:, None]
    measured = measure_pairs(embeddings, members, targets, components, of_texts.twin.metric)
    other = dataclasses.replace(of_texts, folder=tmp_path)
    shown = of_pairs(
        rows=part.rows,
        names=part.names,
        members=members,
        targets=targets,
        components=components,
        embeddings=embeddings,
        measured=measured,
        run=other,
        counts={"train": (30, 60), "report": (12, 24)},
    )
    write_page(other, shown, measured, {})
    page = read(tmp_path)
    assert "12 judged pairs of 24 items" in page.said
    assert "42 judged pairs of 84 items" in page.said
    assert ("Spearman × 100" in page.said) == scored
    assert ("6 pairs judged the same (genuine)" in page.said) == (not scored)
    assert ("judged 0.80 of 1" if scored else "judged different") in page.said
    assert "Which of N classes" not in page.said
    assert "Too near for how different they are" in page.said


def test_the_hardest_judged_pairs_rank_farthest_from_their_judgement() -> None:
    # Ranks of closeness 1 2 3 4, of targets 4 2 3 1.
    distances, targets = np.array([0.9, 0.7, 0.5, 0.1]), np.array([1.0, 0.4, 0.6, 0.2])
    too_far, too_near = hardest_judged(distances, targets, 3)
    assert (too_far.tolist(), too_near.tolist()) == ([0], [3])
    # What is judged the same is never too near, even beside what is the same and farther.
    assert [one.tolist() for one in hardest_judged(distances, np.ones(4), 3)] == [[0, 1], []]


def test_equal_runs_make_equal_pages(run: Run, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        pages.append(rewritten(run, folder, classes=4).text)
    assert pages[0] == pages[1]


def test_the_hardest_pairs_are_those_of_a_full_search_one_of_each_class() -> None:
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(6), 5))
    rows = (generator.normal(size=(6, 3))[labels] + generator.normal(size=(30, 3))).astype("f4")
    distances = pairwise(rows, rows, Metric.EUCLIDEAN)
    best: dict[tuple[int, int], float] = {}
    for first in range(30):
        for second in range(first + 1, 30):
            key = (min(labels[first], labels[second]), max(labels[first], labels[second]))
            sign = -1.0 if key[0] == key[1] else 1.0
            best[key] = min(best.get(key, np.inf), sign * distances[first, second])
    genuine, impostor = hardest(rows, labels, Metric.EUCLIDEAN, 4)
    wanted = sorted((-value for (a, b), value in best.items() if a == b), reverse=True)[:4]
    assert [pair.distance for pair in genuine] == pytest.approx(wanted)
    wanted = sorted(value for (a, b), value in best.items() if a != b)[:4]
    assert [pair.distance for pair in impostor] == pytest.approx(wanted)
    for pair in (*genuine, *impostor):
        assert pair.distance == pytest.approx(distances[pair.first, pair.second])


def test_the_map_shows_the_directions_of_most_variance() -> None:
    generator = np.random.default_rng(0)
    spread = np.array([0.1, 5.0, 0.1, 2.0])
    rows = (generator.normal(size=(90, 4)) * spread).astype(np.float32)
    drawn = space_map(rows, np.repeat(np.arange(9), 10), Metric.EUCLIDEAN, classes=9)
    assert len(drawn.items) == 90
    shown = np.abs(np.corrcoef(drawn.points.T, rows[drawn.items].T)[:2, 2:])
    assert shown[0].argmax() == 1
    assert shown[1].argmax() == 3
    variances = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    assert drawn.explained == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-5)


def test_the_map_draws_some_classes_and_some_items_of_many() -> None:
    labels = np.repeat(np.arange(50), 40)
    rows = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    drawn = space_map(rows, labels, Metric.COSINE)
    assert len(np.unique(labels[drawn.items])) == 12
    assert len(drawn.items) == 300


def test_a_collapsed_twin_has_a_map_too() -> None:
    drawn = space_map(np.ones((6, 3), np.float32), np.repeat([0, 1], 3), Metric.COSINE)
    assert np.allclose(drawn.points, 0.0)


def test_a_log_cut_short_or_missing_draws_what_there_is(tmp_path: Path) -> None:
    assert learning_charts(tmp_path / "log.csv", 0) == []
    (tmp_path / "log.csv").write_text("step,loss,genuine\n1,0.5,nan\n2,x\n")
    charts = learning_charts(tmp_path / "log.csv", 1)
    assert [title for title, _ in charts] == ["Loss"]
    Read(charts[0][1])


def test_markup_escapes_all_but_markup() -> None:
    made = tag("p", "a < b", ["&", None, tag("b", "c")], title='"<', stroke_width=1.5, id=None)
    assert made == '<p title="&quot;&lt;" stroke-width="1.5">a &lt; b&amp;<b>c</b></p>'
    assert joined(Markup("<i>")) == "<i>"


def test_large_pictures_are_shown_small_and_small_ones_exactly() -> None:
    large = np.random.default_rng(0).integers(0, 255, (400, 300, 3), dtype=np.uint8)
    uri = data_uri(large)
    assert uri.startswith("data:image/jpeg;base64,")
    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as opened:
        assert opened.size == (120, 160)
    assert data_uri(large[:64, :64]).startswith("data:image/png;base64,")


def test_axes_have_round_ticks_within_their_ends() -> None:
    assert [text for _, text in linear("x", 0.0, 1.55).ticks] == ["0", "0.5", "1", "1.5"]
    assert [text for _, text in shares("y").ticks][:2] == ["0 %", "20 %"]
    axis = decades("far", 0.004)
    assert [text for _, text in axis.ticks] == ["1 %", "10 %", "100 %"]
    assert axis.place(1.0) == 1.0
    assert axis.place(0.0) == 0.0  # held at the end


def test_shares_keep_three_digits_or_two_where_small() -> None:
    assert [share_text(value) for value in (0.123456, 1.0, 0.0, 0.00123)] == [
        "12.3 %",
        "100.0 %",
        "0.0 %",
        "0.12 %",
    ]
