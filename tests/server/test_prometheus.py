"""The exposition in the hands of a real Prometheus: scraped, queried, and checked by its own tool.

Skipped where Debian's package `prometheus` is not installed; in CI that is a failure.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Stubs
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2

PIXELS, _ = twins.classes_of_pixels(4, 1)
CALLS = 200
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
PATIENCE = 60.0  # seconds


def installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        sentence = f"{program} is not installed; apt-get install prometheus brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@dataclass
class Prometheus:
    """A process that scrapes one server five times a second."""

    port: int
    log: Path

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]

    def value(self, query: str) -> float:
        """Evaluate a query of one result; NaN where there is none."""
        found = self.get("query", query=query)["result"]
        assert len(found) <= 1, f"{query} gives {found}"
        return float(found[0]["value"][1]) if found else float("nan")

    def until(self, query: str, holds: Callable[[float], bool]) -> float:
        """Evaluate a query until its value holds, for at most `PATIENCE` seconds."""
        end = time.monotonic() + PATIENCE
        value = float("nan")
        while time.monotonic() < end:
            try:
                value = self.value(query)
            except OSError:
                time.sleep(0.2)  # not listening yet
                continue
            if holds(value):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{query} stayed at {value}\n{self.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def prometheus(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    program = installed("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [
            {
                "job_name": "twinserve",
                "scrape_timeout": "200ms",
                "static_configs": [{"targets": [f"127.0.0.1:{server.http_port}"]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML too
    port, log = free_port(), folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
    yield Prometheus(port, log)
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of two versions of a twin, which queries must tell apart or put together."""
    folder = tmp_path_factory.mktemp("twins")
    flags: list[str | Path] = ["--data-dir", folder / "data", "--runners", "1", "--threads", "1"]
    for version in ("1", "2"):
        path = folder / f"v{version}.onnx"
        path.write_bytes(twins.small_image_twin(version=version))
        flags += ["--model", path]
    running = conftest.start(*flags)
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def slowest(server: RunningServer, prometheus: Prometheus) -> float:
    """Calls over several scrapes, good ones and one that is refused; seconds of the slowest."""
    prometheus.until('up{job="twinserve"}', lambda value: value == 1)
    longest = 0.0
    with server.channel() as channel:
        stub = Stubs(channel).embedding
        for number in range(CALLS):
            began = time.monotonic()
            stub.Embed(pb.EmbedRequest(inputs=[wire.tensor(one) for one in PIXELS]))
            longest = max(longest, time.monotonic() - began)
            if number % 10 == 9:
                time.sleep(0.1)
        with pytest.raises(grpc.RpcError):
            stub.Embed(pb.EmbedRequest(inputs=[shared_pb2.Input(image=b"x")]))
    return longest


def test_prometheus_scrapes_every_call_exactly_once(prometheus: Prometheus, slowest: float) -> None:
    good = 'twinserve_request_seconds_count{code="OK",method="Embed",model="small"}'
    assert prometheus.until(good, lambda value: value >= CALLS) == CALLS
    assert (
        prometheus.until(
            'twinserve_rejections_total{reason="IMAGE_UNDECODABLE"}', lambda value: value >= 1
        )
        == 1
    )
    assert prometheus.value('twinserve_batch_rows_sum{model="small"}') == CALLS * len(PIXELS)
    assert prometheus.value('sum(twinserve_batches_total{model="small"})') == prometheus.value(
        'twinserve_inference_seconds_count{model="small"}'
    )
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_rates_and_quantiles_are_those_of_the_calls(prometheus: Prometheus, slowest: float) -> None:
    calls = 'twinserve_request_seconds_count{code="OK",method="Embed"}'
    rate = prometheus.until(f"max_over_time(rate({calls}[2s])[1m:200ms])", lambda v: v > 0)
    assert 1 < rate < 100_000
    buckets = 'sum by (le) (rate(twinserve_request_seconds_bucket{code="OK",method="Embed"}[1m]))'
    median, last = (
        prometheus.until(f"histogram_quantile({q}, {buckets})", lambda v: v > 0) for q in (0.5, 1.0)
    )
    assert 0 < median <= last
    # The largest bucket that is not empty reaches at most to the next bound above the slowest.
    assert median <= max(slowest * 2.5, 0.0002)
    busy = "sum(rate(twinserve_inference_seconds_sum[1m])) / sum(twinserve_runners)"
    assert 0 < prometheus.value(busy) < 1, "share of the time that the runners ran"


def test_what_waits_and_what_serves_is_there_to_be_alerted_on(
    prometheus: Prometheus, slowest: float
) -> None:
    for query, wanted in (
        ('twinserve_queue_rows{model="small"}', 0),
        ('twinserve_queue_tokens{model="small"}', 0),
        ('twinserve_queue_oldest_seconds{model="small"}', 0),
        ("twinserve_admitted_rows", 0),
        ("twinserve_admitted_rows / twinserve_admitted_rows_limit", 0),
        ("twinserve_calls_running", 0),
        ('count(twinserve_model_info{precision="fp32",provider="CPUExecutionProvider"})', 2),
        ("count(twinserve_build_info)", 1),
        ("process_resident_memory_bytes > bool 1e6", 1),
        ("process_open_fds > bool 3", 1),
        ('python_gc_collections_total{generation="0"} > bool 0', 1),
    ):
        assert prometheus.until(query, lambda value, wanted=wanted: value == wanted) == wanted  # type: ignore[misc]


def blocks(language: str) -> list[str]:
    """The fenced blocks of docs/metrics.md in one language."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def test_promtool_takes_the_configuration_of_the_document(tmp_path: Path) -> None:
    (written,) = blocks("yaml")
    (tmp_path / "prometheus.yml").write_text(written)
    done = subprocess.run(
        [installed("promtool"), "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def written_queries() -> list[str]:
    """The queries of docs/metrics.md; an indented line goes on with the one before."""
    found: list[str] = []
    for block in blocks("promql"):
        for line in block.splitlines():
            query = line.partition(" #")[0].rstrip()
            if query.startswith(" "):
                found[-1] += query
            else:
                found.append(query)
    return found


def test_the_queries_of_the_document_are_queries(prometheus: Prometheus, slowest: float) -> None:
    queries = written_queries()
    assert len(queries) > 8
    answered = 0
    for query in queries:
        # Windows of minutes and days hold nothing here yet.
        answered += bool(prometheus.get("query", query=query.replace("[5m]", "[20s]"))["result"])
    assert answered >= 6, "those of calls, batches and models have something to say"


def scrape(server: RunningServer, **headers: str) -> tuple[bytes, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}/metrics")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read(), reply.headers


def test_promtool_finds_nothing_to_object_to(server: RunningServer) -> None:
    text, _ = scrape(server)
    checked = subprocess.run(
        [installed("promtool"), "check", "metrics"], input=text, capture_output=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_exposition_comes_packed_and_as_openmetrics_to_whoever_asks(
    server: RunningServer,
) -> None:
    plain, headers = scrape(server)
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Content-Encoding" not in headers
    packed, headers = scrape(server, Accept_Encoding="br;q=1, gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert len(packed) < len(plain) / 3
    assert b"# TYPE twinserve_request_seconds histogram" in gzip.decompress(packed)
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    text, headers = scrape(server, Accept=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")


def test_scrapes_at_once_do_not_keep_each_other_from_an_answer(server: RunningServer) -> None:
    sizes: list[int] = []
    threads = [
        threading.Thread(target=lambda: sizes.append(len(scrape(server)[0]))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(sizes) == 8
    assert min(sizes) > 1000
