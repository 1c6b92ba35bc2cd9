"""The server's families: what is counted, for whom, and that what is gone leaves no labels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.test_prometheus import scrape
from twinserve.server.batching.jobs import Reason
from twinserve.server.watching.metrics import Metrics
from twinserve.server.watching.observations import Total
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def text_of(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_a_models_series_are_there_before_its_first_call() -> None:
    metrics = Metrics()
    metrics.observer("a")
    text = text_of(metrics)
    for line in (
        'twinserve_queue_seconds_count{model="a"} 0.0',
        'twinserve_inference_seconds_count{model="a"} 0.0',
        'twinserve_preprocess_seconds_count{model="a"} 0.0',
        'twinserve_batches_total{model="a",reason="full"} 0.0',
        'twinserve_dropped_rows_total{model="a",why="expired"} 0.0',
    ):
        assert line in text, line


def test_the_figures_of_a_model_are_those_that_prometheus_reads() -> None:
    metrics = Metrics()
    observer = metrics.observer("a")
    assert metrics.observer("a") is observer, "versions of one name are counted together"
    metrics.observer("b").batch(64, 9.0, Reason.FULL)
    observer.batch(3, 0.25, Reason.RUNNER_FREE)
    observer.batch(3, 0.5, Reason.FULL)
    observer.batch(1, 0.125, Reason.AGED)
    observer.queued(0.5)
    observer.padded(30, 10)
    metrics.preprocess.labels("a").observe(2.0)
    metrics.requests.labels("Embed", "OK", "a").observe(1.0)
    metrics.requests.labels("Compare", "OK", "a").observe(2.0)
    metrics.requests.labels("Embed", "INVALID_ARGUMENT", "a").observe(4.0)
    figures = metrics.figures("a")
    assert figures.answered == Total(2, 3.0)
    assert figures.failed == Total(1, 4.0)
    assert figures.queue == Total(1, 0.5)
    assert figures.preprocess == Total(1, 2.0)
    assert figures.inference == Total(3, 0.875)
    assert figures.rows == 7
    assert figures.runs == {1: Total(1, 0.125), 3: Total(2, 0.75)}
    assert figures.last_run > 1e9
    text = text_of(metrics)
    for line in (
        'twinserve_batch_rows_sum{model="a"} 7.0',
        'twinserve_inference_seconds_sum{model="a"} 0.875',
        'twinserve_batches_total{model="a",reason="full"} 1.0',
        'twinserve_tokens_total{kind="padding",model="a"} 10.0',
        'twinserve_batch_tokens_bucket{le="64.0",model="a"} 1.0',
        'twinserve_batch_tokens_bucket{le="32.0",model="a"} 0.0',
    ):
        assert line in text, line


def test_a_thousand_models_that_came_and_went_leave_no_labels() -> None:
    metrics = Metrics()
    metrics.observer("stays")
    before = text_of(metrics).count("\n")
    for number in range(1000):
        name = f"passing{number}"
        metrics.observer(name).batch(1, 0.1, Reason.FULL)
        metrics.requests.labels("Embed", "OK", name).observe(0.1)
        metrics.model_load_seconds.labels(name).observe(0.1)
        metrics.forget(name)
    text = text_of(metrics)
    assert "passing" not in text
    assert text.count("\n") == before


def test_a_gauge_is_asked_at_each_scrape_and_one_that_fails_spoils_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    loaded = {"a": 1.0}
    metrics.watch_each(
        "some", "A text.", ("model",), lambda: [((k,), v) for k, v in loaded.items()]
    )
    metrics.watch("broken", "A text.", lambda: 1 / 0)
    metrics.watch("last", "A text.", lambda: 5)
    assert 'twinserve_some{model="a"} 1.0' in text_of(metrics)
    loaded["b"] = loaded.pop("a") + 1
    text = text_of(metrics)
    assert 'twinserve_some{model="b"} 2.0' in text
    assert 'twinserve_some{model="a"}' not in text
    assert "twinserve_last 5.0" in text
    assert "twinserve_broken could not be read" in caplog.text


def test_the_time_in_the_gallery_is_told_by_call_and_model(server: RunningServer) -> None:
    (one,) = twins.classes_of_pixels(1, 1)[0]
    with server.channel() as channel:
        stub = wire.Stubs(channel).gallery
        settings = gallery_pb2.Gallery(name="seen", model="small")
        stub.CreateGallery(pb.CreateGalleryRequest(gallery=settings))
        item = shared_pb2.Item(id="a", subject="ann")
        entry = pb.EnrollItem(item=item, input=wire.tensor(one))
        stub.Enroll(pb.EnrollRequest(gallery="seen", items=[entry]))
        for _ in range(2):
            stub.Search(pb.SearchRequest(gallery="seen", probes=[wire.tensor(one)]))
        stub.Verify(pb.VerifyRequest(gallery="seen", subject="ann", probe=wire.tensor(one)))
    text = scrape(server)[0].decode()
    for call, times in (("Enroll", 1), ("Search", 2), ("Verify", 1)):
        series = f'twinserve_search_seconds_count{{method="{call}",model="small"}}'
        assert f"{series} {float(times)}" in text, call


def documented() -> dict[str, tuple[str, str, str]]:
    """The tables of docs/metrics.md: name to (type, labels, HELP)."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*?) \| ([^|]*) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    return {name: (kind, labels, text) for name, kind, labels, text in rows}


def exported(text: str) -> dict[str, tuple[str, str]]:
    """Families of an exposition: name to (type, HELP)."""
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.MULTILINE))
    return {name: (kinds[name], helps[name]) for name in helps}


def test_the_document_says_of_every_metric_what_the_server_says(server: RunningServer) -> None:
    text = scrape(server)[0].decode()
    found = {name: one for name, one in exported(text).items() if name.startswith("twinserve_")}
    written = documented()
    assert set(written) == set(found)
    for name, (kind, explanation) in found.items():
        assert written[name][0] == kind, name
        assert written[name][2] == explanation, name


def test_the_document_names_the_labels_that_the_server_gives(server: RunningServer) -> None:
    written = documented()
    text = scrape(server)[0].decode()
    checked = 0
    for name, labels in re.findall(r"^(twinserve_\w+?)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        family = name if name in written else re.sub(r"_(bucket|count|sum)$", "", name)
        given = set(re.findall(r'(\w+)="', labels)) - {"le"}
        assert given == set(re.findall(r"\w+", written[family][1])), name
        checked += 1
    assert checked > 100
