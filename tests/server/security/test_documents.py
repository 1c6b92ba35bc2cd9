"""docs/security.md and docs/threat-model.md say what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twinserve.server.security import keys
from twinserve.server.security.access import Role
from twinserve.server.security.methods import ROLES
from twinserve.server.services import auditing

ROOT = Path(__file__).parents[3]
SECURITY = (ROOT / "docs/security.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", SECURITY, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_file_of_keys_that_is_shown_is_one() -> None:
    text = re.sub('"sha256:[0-9a-f]+…"', f'"sha256:{"0" * 64}"', block("toml"))
    (key,) = keys.parse(text, "docs")
    assert key.id == "shop"
    assert key.burst == 100.0
    shown = re.findall(r"^(\w+) = ", text, re.MULTILINE)
    assert tuple(shown) == keys._FIELDS, "every field is shown"


def test_the_table_of_roles_names_every_method() -> None:
    for role in Role:
        (row,) = re.findall(rf"^\| {role.name.lower()} \| (.*) \|$", SECURITY, re.MULTILINE)
        named = set(re.findall(r"\b[A-Z][a-z]+[A-Z]?\w+\b|\bEmbed\b", row)) - {
            *("Open", "Inference", "Protocol"),
        }
        own = {
            method.rpartition("/")[2]
            for method, needed in ROLES.items()
            if needed is role and "twinserve" in method
        }
        assert named == own, role


def test_the_fields_of_an_audit_line_are_told() -> None:
    line: dict[str, Any] = json.loads(block("json"))
    (table,) = re.findall(r"^\| field \| \|\n(.*?)\n\n", SECURITY, re.MULTILINE | re.DOTALL)
    told = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()[1:])))
    written = {*auditing._TEXTS, *auditing._DONE, "items", "by", "aliases", "galleries", "force"}
    written |= {"time", "key", "peer", "method", "request_id", "idempotency_key", "code"}
    assert told == written
    assert set(line) <= told


def test_every_test_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    folder, named = ROOT, 0
    for path in re.findall(r"`((?:tests/)?[\w/]*(?:test_\w+|conftest)\.py)`", text):
        found = ROOT / path if path.startswith("tests/") else folder / path
        assert found.is_file(), path
        folder, named = found.parent, named + 1
    assert named > 20
