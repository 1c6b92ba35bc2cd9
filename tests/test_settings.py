"""Settings by flag, environment, file and default; what is printed can be read back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest

from twinserve import settings
from twinserve.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """A parser with an option of each kind."""
    made = argparse.ArgumentParser(prog="program")
    made.add_argument("--model", action="append")
    made.add_argument("--grpc-port", type=int, default=50051)
    made.add_argument("--ageing", type=float, default=1.0)
    made.add_argument("--data-dir", type=Path)
    made.add_argument("--log-format", choices=("text", "json"), default="text")
    made.add_argument("--insecure", action="store_true")
    made.add_argument("--no-reflection", action="store_false", dest="reflection")
    made.add_argument("--traces", action=argparse.BooleanOptionalAction, default=None)
    made.add_argument("--api-key")
    made.add_argument("--tls-key", type=Path)
    settings.add_arguments(made)
    return made


def parse(
    *argv: str, environment: Mapping[str, str] | None = None, file: Path | None = None
) -> argparse.Namespace:
    flags = [] if file is None else ["--config", str(file)]
    return settings.parse(parser(), [*flags, *argv], environment or {}, needed=["model"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serve.toml"


def origins(arguments: argparse.Namespace) -> dict[str, str]:
    return {one.name: one.origin for one in arguments.settings}


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(file: Path) -> None:
    file.write_text('# ours\nmodel = ["a.onnx"]\ngrpc_port = 1\nageing = 3\n')
    environment = {"TWINSERVE_GRPC_PORT": "2", "TWINSERVE_AGEING": "4.5"}
    found = parse("--grpc-port", "3", environment=environment, file=file)
    assert (found.grpc_port, found.ageing, found.model) == (3, 4.5, ["a.onnx"])
    assert (found.log_format, found.insecure, found.data_dir) == ("text", False, None)
    assert (found.reflection, found.traces) == (True, None)
    said = origins(found)
    assert said["grpc_port"] == "flag --grpc-port"
    assert said["ageing"] == "environment TWINSERVE_AGEING"
    assert said["model"] == f"file {file}, line 2"
    assert said["data_dir"] == "default"


def test_a_list_is_replaced_by_a_higher_layer_and_not_added_to(file: Path) -> None:
    file.write_text('model = ["a.onnx", "b.onnx"]\n')
    assert parse(file=file).model == ["a.onnx", "b.onnx"]
    environment = {"TWINSERVE_MODEL": "c=c.onnx, d.onnx"}
    assert parse(file=file, environment=environment).model == ["c=c.onnx", "d.onnx"]
    assert parse("--model", "e", file=file, environment=environment).model == ["e"]


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("yes", True), ("False", False), ("off", False)]
)
def test_switches_are_told_in_words(text: str, value: bool) -> None:
    environment = {"TWINSERVE_MODEL": "a", "TWINSERVE_INSECURE": text, "TWINSERVE_TRACES": text}
    found = parse(environment={**environment, "TWINSERVE_NO_REFLECTION": text})
    assert (found.insecure, found.traces, found.reflection) == (value, value, not value)


def test_the_file_may_be_named_by_the_environment(file: Path) -> None:
    file.write_text('model = "a.onnx"\ninsecure = true\n')
    found = parse(environment={"TWINSERVE_CONFIG": str(file)})
    assert found.model == ["a.onnx"]
    assert found.insecure


def test_a_variable_set_to_nothing_is_not_set() -> None:
    assert parse("--model", "a", environment={"TWINSERVE_GRPC_PORT": ""}).grpc_port == 50051


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\ngrpc_prot = 5\n", "line 2: grpc_prot is no setting; did you mean grpc_port?"),
        ("grpc-port = 5\n", "line 1: grpc-port is no setting; did you mean grpc_port?"),
        ("a = 1\n", "line 1: a is no setting"),
        ("\n\n[server]\nhost = 'x'\n", "line 3: server is no setting"),
        ("grpc_port = 'many'\n", "line 1: grpc_port is 'many'; give a whole number"),
        ("ageing = true\n", "ageing is true or false; give a single number"),
        ("data_dir = ['a']\n", "data_dir is an array; give a single text"),
        ("log_format = 'jsn'\n", "log_format is 'jsn'; give one of text, json; did you mean json?"),
        ("insecure = 'maybe'\n", "insecure is 'maybe'; give true or false"),
        ("grpc_port = \n", "is no TOML: .*line 1"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_by_line_and_key(
    file: Path, content: str, says: str
) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError, match=f"{file}.*{says}"):
        parse("--model", "a", file=file)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        parse("--model", "a", file=file)


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="TWINSERVE_GRPC_PORT is 'x'; give a whole number"):
        parse("--model", "a", environment={"TWINSERVE_GRPC_PORT": "x"})


def test_what_is_needed_may_come_from_anywhere_and_is_asked_for_by_all_its_names(
    file: Path,
) -> None:
    with pytest.raises(ConfigError, match="--model is needed; give the flag, TWINSERVE_MODEL, or"):
        parse()
    file.write_text("grpc_port = 5\n")
    with pytest.raises(ConfigError, match=f"and is not in {file}"):
        parse(file=file)


def test_only_variables_that_look_like_a_setting_are_warned_about() -> None:
    names = (
        "GRPC_PROT",
        "TARGET",
        "API_KEY",
        "LOG",
        "DEBUG",
        "SERVICE_HOST",
        "MINILM",
        "PORT",
        "CLIENT_TLS_KEY",
    )
    environment = {f"TWINSERVE_{name}": "x" for name in names} | {"OTHER_GRPC_PROT": "x"}
    del environment["TWINSERVE_API_KEY"]  # a setting of this parser
    assert parse("--model", "a", environment=environment).settings_warnings == (
        "TWINSERVE_GRPC_PROT is no setting and is ignored; did you mean TWINSERVE_GRPC_PORT?",
    )


def test_the_variables_that_kubernetes_sets_for_a_service_are_not_taken_for_a_port() -> None:
    environment = {"TWINSERVE_GRPC_PORT": "tcp://10.0.0.7:50051"}
    found = parse("--model", "a", environment=environment)
    assert found.grpc_port == 50051
    assert "enableServiceLinks: false" in found.settings_warnings[0]


def test_what_is_printed_reads_back_as_the_same_settings(file: Path) -> None:
    flags = ("--model", 'a="b\\c".onnx', "--model", "ü\n.onnx", "--data-dir", "da ta", "--traces")
    found = parse(*flags, "--no-reflection", environment={"TWINSERVE_AGEING": "0.1"})
    text = settings.as_toml(found.settings)
    assert "ageing = 0.1  # environment TWINSERVE_AGEING\n" in text
    assert "# tls_key is not set\n" in text
    assert "grpc_port = 50051  # default\n" in text
    file.write_text(text)
    again = parse(file=file)
    for name in ("model", "data_dir", "traces", "reflection", "ageing", "grpc_port", "tls_key"):
        assert getattr(again, name) == getattr(found, name)


def test_secrets_are_masked_and_paths_of_secrets_are_not(file: Path) -> None:
    found = parse("--model", "a", "--tls-key", "tls.pem", environment={"TWINSERVE_API_KEY": "hush"})
    assert found.api_key == "hush"
    text = settings.as_toml(found.settings)
    assert "hush" not in text
    assert '# api_key = "***"  # environment TWINSERVE_API_KEY; secret, so left out\n' in text
    assert 'tls_key = "tls.pem"' in text
    file.write_text(text)
    assert parse(file=file).api_key is None


def test_a_switch_named_after_a_secret_is_none() -> None:
    made = parser()
    made.add_argument("--metrics-without-key", action="store_true")
    found = settings.parse(made, ["--metrics-without-key"], environment={})
    assert "metrics_without_key = true" in settings.as_toml(found.settings)


def test_an_error_about_a_flag_nobody_gave_says_where_its_value_is_from(file: Path) -> None:
    file.write_text("grpc_port = 70000\n")
    found = parse("--model", "a", file=file)
    error = settings.with_origins(ConfigError("--grpc-port is 70000; too many"), found.settings)
    assert error.message.endswith(f"(--grpc-port is from file {file}, line 1)")
    same = ConfigError("--model is a; why?")
    assert settings.with_origins(same, found.settings) is same
