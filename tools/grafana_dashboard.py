"""Writes deploy/grafana/twinserve.json, the dashboard that Grafana imports; change it here.

    python tools/grafana_dashboard.py

A panel is a title, a unit, what it is good for, and its queries with their legends. In queries
SERVER stands for the servers that the dashboard's variables pick, MODEL and METHOD for its models
and methods. A test holds every metric and label in it to what a server exports.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "deploy" / "grafana" / "twinserve.json"

# What the words in queries stand for.
PARTS = {
    "SERVER": 'job=~"$job",instance=~"$instance"',
    "MODEL": 'model=~"$model"',
    "VERSION": 'model=~"($model)(@.*)?"',
    "METHOD": 'method=~"$method"',
}
# The interval over which rates are taken; Grafana fits it to the time that is shown.
RATE = "$__rate_interval"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, ACROSS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph, or one number.

    Args:
        title: of the panel.
        unit: as Grafana names it.
        text: what it is good for.
        queries: (PromQL, legend) each.
        kind: timeseries, or stat for one number.
    """

    title: str
    unit: str
    text: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


def rate(metric: str, by: str, labels: str) -> str:
    """Write how much a counter grows a second, of each value of a label."""
    return f"sum by ({by}) (rate(twinserve_{metric}{{{labels}}}[RATE]))"


def quantile(q: float, metric: str, by: str, labels: str) -> str:
    """Write the quantile of a histogram, of each value of a label."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'le, {by}', labels)})"


def mean(metric: str, by: str, labels: str) -> str:
    """Write the mean of a histogram, of each value of a label."""
    return share(rate(f"{metric}_sum", by, labels), rate(f"{metric}_count", by, labels))


def share(part: str, whole: str) -> str:
    """Write one expression divided by another."""
    return f"{part} / {whole}"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Traffic",
        (
            Panel("Calls a second", "reqps", "Calls answered, by method.", (
                (rate("request_seconds_count", "method", "SERVER,METHOD,MODEL"),
                 "{{method}}"),
            )),
            Panel("Calls that failed, by code", "reqps",
                  "INTERNAL and UNKNOWN are the server's fault, the rest the callers' or for "
                  "want of room.", (
                (rate("request_seconds_count", "code", 'SERVER,METHOD,code!="OK"'),
                 "{{code}}"),
            )),
            Panel("Calls inside", "short", "Being worked on or waiting, health checks left out.", (
                ("sum by (instance) (twinserve_calls_running{SERVER})", "{{instance}}"),
            )),
        ),
    ),
    (
        "Latency",
        (
            Panel("99th percentile by method", "s", "Inside the server, without the network.", (
                (quantile(0.99, "request_seconds", "method", 'SERVER,METHOD,MODEL,code="OK"'),
                 "{{method}}"),
            )),
            Panel("Median by method", "s", "The same for the call in the middle.", (
                (quantile(0.5, "request_seconds", "method", 'SERVER,METHOD,MODEL,code="OK"'),
                 "{{method}}"),
            )),
            Panel("Where a call's time goes, mean", "s",
                  "The stages in the order in which a call passes them. A large queue beside a "
                  "small run: too few runners, or a burst.", (
                (mean("preprocess_seconds", "model", "SERVER,MODEL"), "preprocess {{model}}"),
                (mean("queue_seconds", "model", "SERVER,MODEL"), "queue {{model}}"),
                (mean("riding_seconds", "model", "SERVER,MODEL"), "run {{model}}"),
                (mean("search_seconds", "method", "SERVER,MODEL"), "gallery, {{method}}"),
            )),
        ),
    ),
    (
        "Batching",
        (
            Panel("Rows of a run, mean", "short",
                  "Near 1 under load: the model is so fast that nothing collects.", (
                (mean("batch_rows", "model", "SERVER,MODEL"), "{{model}}"),
            )),
            Panel("Runs by why they left", "ops", "Mostly full: the server is at its limit.", (
                (rate("batches_total", "reason", "SERVER,MODEL"), "{{reason}}"),
            )),
            Panel("Share of the time that runners are busy", "percentunit",
                  "At 1 no runner ever waits for work.", (
                (share(rate("inference_seconds_sum", "model", "SERVER,MODEL"), "sum by (model) ("
                       'label_replace(twinserve_runners{SERVER,VERSION}, "model", "$1", '
                       '"model", "(.*)@.*"))'), "{{model}}"),
            )),
            Panel("Rows that wait", "short", "Where it stays above 0, arrivals outrun the model.", (
                ("sum by (model) (twinserve_queue_rows{SERVER,MODEL})", "{{model}}"),
            )),
            Panel("Longest wait", "s", "Of the oldest job in the queue.", (
                ("max by (model) (twinserve_queue_oldest_seconds{SERVER,MODEL})", "{{model}}"),
            )),
            Panel("Padding among the tokens", "percentunit", "Work for nothing, of texts.", (
                (share(rate("tokens_total", "model", 'SERVER,MODEL,kind="padding"'),
                       rate("tokens_total", "model", "SERVER,MODEL")), "{{model}}"),
            )),
        ),
    ),
    (
        "Refusals",
        (
            Panel("Errors by reason", "ops",
                  "As clients see them, a failed item each. QUEUE_FULL and CLIENT_OVER_SHARE: more "
                  "load than capacity.", (
                (rate("rejections_total", "reason", "SERVER"), "{{reason}}"),
            )),
            Panel("Calls refused unread", "reqps", "Before their work began.", (
                (rate("refused_calls_total", "reason", "SERVER"), "{{reason}}"),
            )),
            Panel("How full the server is", "percentunit", "At 1 it refuses.", (
                ("max by (instance) (twinserve_admitted_rows{SERVER} / "
                 "twinserve_admitted_rows_limit{SERVER})", "rows {{instance}}"),
                ("max by (instance) (twinserve_message_bytes{SERVER} / "
                 "twinserve_message_bytes_limit{SERVER})", "bytes {{instance}}"),
            )),
            Panel("Rows dropped before their run", "ops", "Expired: less time than the queue.", (
                (rate("dropped_rows_total", "why", "SERVER,MODEL"), "{{why}}"),
            )),
        ),
    ),
    (
        "Galleries",
        (
            Panel("Galleries", "short", "On the servers picked.", (
                ("sum(twinserve_galleries{SERVER})", "galleries"),
            ), "stat"),
            Panel("Items", "short", "Live ones, of all galleries.", (
                ("sum(twinserve_gallery_items{SERVER})", "items"),
            ), "stat"),
            Panel("Damaged galleries", "short", "Above 0 the log names them.", (
                ("sum(twinserve_galleries_damaged{SERVER})", "damaged"),
            ), "stat"),
            Panel("Time in the gallery, 99th percentile", "s",
                  "Enroll up to the commit on disk, Search and Verify the search alone.", (
                (quantile(0.99, "search_seconds", "method", "SERVER,MODEL,METHOD"), "{{method}}"),
            )),
            Panel("Writing", "s", "The commit is mostly the disk's flush; the lag waits for it.", (
                (quantile(0.99, "gallery_commit_seconds", "instance", "SERVER,MODEL"),
                 "commit {{instance}}"),
                (quantile(0.99, "gallery_publish_seconds", "instance", "SERVER,MODEL"),
                 "publish {{instance}}"),
                ("max by (instance) (twinserve_gallery_durability_lag_seconds{SERVER})",
                 "lag {{instance}}"),
            )),
            Panel("What searches pay for", "short",
                  "Vectors without a graph are scanned; dead ones wait for a merge.", (
                ("sum by (instance) (twinserve_gallery_index_debt{SERVER})",
                 "no graph {{instance}}"),
                ("sum by (instance) (twinserve_gallery_dead_vectors{SERVER})", "dead {{instance}}"),
                ("sum by (instance) (twinserve_gallery_writer_rows{SERVER})",
                 "to be written {{instance}}"),
            )),
            Panel("Bytes on disk", "bytes", "The store is the truth; the index can be made anew.", (
                ("sum by (kind) (twinserve_gallery_disk_bytes{SERVER})", "{{kind}}"),
            )),
            Panel("Memory of the galleries", "bytes", "Rows, vectors and graphs, about.", (
                ("sum by (instance) (twinserve_gallery_memory_bytes{SERVER})", "{{instance}}"),
            )),
            Panel("Segments", "short", "Some seven a gallery are usual.", (
                ("sum by (instance) (twinserve_gallery_segments{SERVER})", "{{instance}}"),
            )),
        ),
    ),
    (
        "Recall",
        (
            Panel("Recall of live searches", "percentunit",
                  "Of a sample of searches that were answered again exactly.", (
                (share(rate("gallery_recall_found_total", "model", "SERVER,MODEL"),
                       rate("gallery_recall_neighbours_total", "model", "SERVER,MODEL")),
                 "{{model}}"),
            )),
            Panel("Recall of the worst gallery", "percentunit", "Below 0.9 the log names it.", (
                ("min by (model) (twinserve_gallery_recall_lowest{SERVER,MODEL})", "{{model}}"),
            )),
            Panel("Since all was read again and verified", "s", "The scrub takes a day.", (
                ("time() - max by (instance) "
                 "(twinserve_gallery_last_scrub_timestamp_seconds{SERVER} > 0)", "{{instance}}"),
            )),
        ),
    ),
    (
        "Drift",
        (
            Panel("Nearest distance of searches", "none",
                  "Median and 90th percentile. A shift: of the probes, or of what is enrolled.", (
                (quantile(0.5, "nearest_distance", "model", "SERVER,MODEL"), "median {{model}}"),
                (quantile(0.9, "nearest_distance", "model", "SERVER,MODEL"), "90 % {{model}}"),
            )),
            Panel("Distance of Compare and Verify", "none", "Median and 90th percentile.", (
                (quantile(0.5, "compared_distance", "model", "SERVER,MODEL"), "median {{model}}"),
                (quantile(0.9, "compared_distance", "model", "SERVER,MODEL"), "90 % {{model}}"),
            )),
            Panel("What thresholds stood on", "ops",
                  "Many of none: calibrate the twin, or enrol more subjects.", (
                (rate("search_decisions_total", "evidence", "SERVER"),
                 "{{evidence}}"),
            )),
            Panel("Candidates decide otherwise", "percentunit", "Share of pairs, of shadow runs.", (
                (share("twinserve_shadow_pairs_decided_otherwise{SERVER}",
                       "twinserve_shadow_pairs{SERVER}"), "{{candidate}}"),
            )),
            Panel("Candidates' distance from the model", "none", "Mean, of shadow runs.", (
                ("twinserve_shadow_mean_drift{SERVER}", "{{candidate}}"),
            )),
        ),
    ),
    (
        "Process",
        (
            Panel("Processors in use", "short", "1 is one processor all the time.", (
                ("rate(process_cpu_seconds_total{SERVER}[RATE])", "{{instance}}"),
            )),
            Panel("Memory", "bytes", "Resident.", (
                ("process_resident_memory_bytes{SERVER}", "{{instance}}"),
            )),
            Panel("Open files", "short", "Connections included.", (
                ("process_open_fds{SERVER}", "{{instance}}"),
                ("process_max_fds{SERVER}", "limit {{instance}}"),
            )),
            Panel("Up for", "s", "Since the process began.", (
                ("time() - process_start_time_seconds{SERVER}", "{{instance}}"),
            )),
            Panel("Versions", "short", "Of twinserve and onnxruntime, by server.", (
                ("sum by (version, onnxruntime) (twinserve_build_info{SERVER})",
                 "{{version}}, onnxruntime {{onnxruntime}}"),
            )),
            Panel("Models and what runs them", "short", "By version, precision and provider.", (
                ("sum by (model, precision, provider) (twinserve_model_info{SERVER,VERSION})",
                 "{{model}} {{precision}} {{provider}}"),
            )),
        ),
    ),
)  # fmt: skip


def expression(query: str) -> str:
    """Return a query with all its words replaced."""
    for word, meaning in PARTS.items():
        query = query.replace(word, meaning)
    return query.replace("[RATE]", f"[{RATE}]")


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        y += 1
        for number, panel in enumerate(row):
            place = {
                "x": WIDTH * (number % ACROSS),
                "y": y + HEIGHT * (number // ACROSS),
                "w": WIDTH,
                "h": HEIGHT,
            }
            panels.append(_panel(panel, len(panels) + 1, place))
        y += HEIGHT * -(-len(row) // ACROSS)
    return {
        "uid": "twinserve",
        "title": "twinserve",
        "description": "Traffic, latency, batching, refusals, galleries and drift of twinserve.",
        "tags": ["twinserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {}
        if panel.kind == "stat"
        else {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": DATASOURCE,
                "expr": expression(query),
                "legendFormat": legend,
            }
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
    }
    picked = [
        ("job", "Job", "label_values(twinserve_build_info, job)"),
        ("instance", "Server", 'label_values(twinserve_build_info{job=~"$job"}, instance)'),
        ("model", "Model", "label_values(twinserve_queue_rows{SERVER}, model)"),
        ("method", "Method", "label_values(twinserve_request_seconds_count{SERVER}, method)"),
    ]
    return [source] + [
        {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": expression(query), "refId": name},
            "definition": expression(query),
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            # Calls that need no model have none.
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "hide": 0,
        }
        for name, label, query in picked
    ]


def main() -> None:
    """Write the file."""
    TARGET.write_text(json.dumps(dashboard(), indent=2) + "\n")


if __name__ == "__main__":
    main()
