"""`twinserve serve`: settings from every layer, and docs/settings.md, which lists them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.house.conftest import root, tool
from twinserve import settings
from twinserve.cli.__main__ import parser_of

Run = Callable[..., tuple[int, str, str]]
__all__ = ["root", "tool"]


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*settings.options(parser_of("serve")), "config"):
        monkeypatch.delenv(settings.variable(name), raising=False)


def test_every_setting_reads_back_as_it_is_printed(run: Run, tmp_path: Path) -> None:
    code, first, err = run(
        *("serve", "--print-config", "--model", "a=b.onnx", "--data-dir", "data"),
        *("--max-bytes", "1G", "--grpc-port", "0"),
    )
    assert (code, err) == (0, "")
    file = tmp_path / "serve.toml"
    file.write_text(first)
    code, second, err = run("serve", "--print-config", "--config", file)
    assert (code, err) == (0, "")
    values = [[line.partition("  #")[0] for line in text.splitlines()] for text in (first, second)]
    assert values[0] == values[1]
    assert "max_bytes = 1073741824  # flag --max-bytes" in first
    assert f"grpc_port = 0  # file {file}, line " in second


def test_the_environment_stands_in_for_flags_that_are_needed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--model is needed; give the flag, TWINSERVE_MODEL" in run("serve")[2]
    monkeypatch.setenv("TWINSERVE_MODEL", "a.onnx")
    monkeypatch.setenv("TWINSERVE_DATA_DIR", "data")
    monkeypatch.setenv("TWINSERVE_GRPC_PROT", "1")
    code, out, err = run("serve", "--print-config")
    assert code == 0
    assert 'model = ["a.onnx"]  # environment TWINSERVE_MODEL' in out
    assert "did you mean TWINSERVE_GRPC_PORT?" in err
    monkeypatch.setenv("TWINSERVE_GRPC_PORT", "70000")
    code, out, err = run("serve", "--print-config")
    assert (code, out) == (2, "")
    assert "(--grpc-port is from environment TWINSERVE_GRPC_PORT)" in err


def test_a_twin_that_is_named_without_its_flag_is_answered_with_it(run: Run) -> None:
    assert "twinserve serve --model twin.onnx" in run("serve", "twin.onnx")[2]


def test_the_documented_table_is_the_parsers(root: Path, tool: Callable[[str], ModuleType]) -> None:
    script = tool("settings_table")
    documented = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    assert script.table() in documented, "run python tools/settings_table.py"
    for name in settings.options(parser_of("serve")):
        assert f"| `{name}` |" in documented
