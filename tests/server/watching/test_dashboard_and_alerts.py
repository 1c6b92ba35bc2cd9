"""The dashboard and the alerts: real PromQL, of metrics and labels that a server really exports."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server.test_prometheus import installed
from tests.server.watching.promql import named
from tests.server.watching.test_metrics import documented, exported, text_of
from tools import grafana_dashboard
from twinserve.server.watching.metrics import Metrics

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULE_TESTS = [RULES.with_name("alerts_test.yml"), RULES.with_name("alerts_days_test.yml")]
DOCUMENT = ROOT / "docs" / "observability.md"

# Prometheus adds these to whatever it scrapes.
ADDED = {"job", "instance"}


def series() -> dict[str, set[str]]:
    """Every series that a server exports, with its labels.

    docs/metrics.md has all families, also those that show only once something has happened; tests
    beside this one hold it to a running server, labels included.
    """
    found: dict[str, set[str]] = {"up": set(ADDED)}
    process = {
        name: (kind, "`generation`" if "_gc_" in name else "", "")
        for name, (kind, _) in exported(text_of(Metrics())).items()
        if not name.startswith("twinserve_")
    }
    for name, (kind, labels, _) in (documented() | process).items():
        given = set(re.findall(r"\w+", labels)) | ADDED
        if kind == "histogram":
            found[f"{name}_bucket"] = given | {"le"}
            found[f"{name}_sum"] = found[f"{name}_count"] = given
        else:
            found[name] = given
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found = json.loads(grafana_dashboard.TARGET.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Every expression that Prometheus is to evaluate, each with where it stands."""
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    for panel in panels():
        found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    for variable in json.loads(grafana_dashboard.TARGET.read_text())["templating"]["list"]:
        inside = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
        if inside:
            found.append((variable["name"], f"sum by ({inside[2]}) ({inside[1]})"))
    return found


def unknown(expression: str, known: dict[str, set[str]]) -> list[str]:
    """What an expression names that no server exports."""
    found = named(expression)
    wrong = [metric for metric in found.metrics if metric not in known]
    labels: set[str] = set()
    for metric, chosen in found.metrics.items():
        given = known.get(metric, set())
        labels |= given
        wrong += [f"{metric}{{{label}}}" for label in chosen - given]
    return wrong + [f"by {label}" for label in found.labels - labels]


def test_expressions_name_metrics_and_labels_that_are_there() -> None:
    known = series()
    found = expressions()
    assert len(found) > 60
    assert {where: wrong for where, one in found if (wrong := unknown(one, known))} == {}


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(twinserve_requests_total[5m])", ["twinserve_requests_total"]),
        ('twinserve_queue_rows{gallery="a"} > 1e6', ["twinserve_queue_rows{gallery}"]),
        ("sum by (client) (twinserve_queue_rows)", ["by client"]),
        ("twinserve_queue_seconds", ["twinserve_queue_seconds"]),
        ('sum by (le) (rate(twinserve_queue_seconds_bucket{model=~"a|b{2}"}[5m] offset 1d))', []),
    ],
)
def test_what_is_not_there_is_noticed(expression: str, wrong: list[str]) -> None:
    assert unknown(expression, series()) == wrong


def test_promtool_takes_the_configuration_of_the_page(tmp_path: Path) -> None:
    promtool = installed("promtool")
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    command = [promtool, "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_promtool_reads_every_expression_and_the_alerts_fire_as_told(tmp_path: Path) -> None:
    promtool = installed("promtool")
    written = [
        # What Grafana puts in for its variables.
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "1m", one)}
        for number, (_, one) in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": written}]}))
    for command in (
        ["check", "rules", str(RULES), str(path)],
        ["test", "rules", *map(str, RULE_TESTS)],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_and_explained() -> None:
    names = [rule["alert"] for rule in rules()]
    tried = {
        one["alertname"]
        for path in RULE_TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one["exp_alerts"]
    }
    assert tried == set(names), "each fires in a test"
    headings = re.findall(r"^### (Twinserve\w+)$", DOCUMENT.read_text(), re.MULTILINE)
    assert headings == names, "each has its heading, in this order"
    for rule in rules():
        link = rule["annotations"]["runbook_url"]
        assert link == f"docs/observability.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_dashboard_is_what_its_source_says() -> None:
    written = json.loads(grafana_dashboard.TARGET.read_text())
    assert written == grafana_dashboard.dashboard(), "run python tools/grafana_dashboard.py"
    numbers = [panel["id"] for panel in written["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}", "the importer picks the Prometheus"
        assert panel["description"], panel["title"]
