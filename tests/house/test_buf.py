"""buf passes our contract as it is, lets additions through, and stops what would break clients.

`make buf` runs the same two commands on the working tree; here they are run on changed copies.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import google.rpc
import pytest

from tests import conftest


@dataclass(frozen=True)
class Contract:
    """A copy of the contract that may be changed."""

    folder: Path
    buf: Path

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.folder / "protos" / "twinserve" / "v1" / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def run(self, *arguments: str) -> str:
        """Return what buf found; empty where all is well."""
        done = subprocess.run(
            [self.buf, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""
        assert (done.returncode == 0) == (done.stdout == "")
        return done.stdout

    def lint(self) -> str:
        return self.run("lint")

    def breaking(self) -> str:
        return self.run("breaking", "protos", "--against", "protos/released.binpb")


@pytest.fixture
def contract(root: Path, tmp_path: Path) -> Contract:
    buf = root / "tools" / "buf" / "node_modules" / ".bin" / "buf"
    conftest.require(buf.exists(), "buf is not installed: run make buf")
    shutil.copytree(root / "protos", tmp_path / "protos")
    shutil.copy(root / "buf.yaml", tmp_path)
    imported = tmp_path / "build" / "googleapis" / "google" / "rpc"
    imported.mkdir(parents=True)
    for path in Path(google.rpc.__path__[0]).glob("*.proto"):
        shutil.copy(path, imported)
    return Contract(tmp_path, buf)


def test_our_contract_is_clean_and_breaks_no_client_of_the_released_one(
    contract: Contract,
) -> None:
    assert contract.lint() == ""
    assert contract.breaking() == ""


def test_an_addition_breaks_nobody(contract: Contract) -> None:
    contract.replace(
        "shared.proto",
        "message FilterList {",
        "message FilterList {\n  // note is new.\n  string note = 999;",
    )
    assert contract.breaking() == ""


def test_what_would_break_a_client_is_found(contract: Contract) -> None:
    contract.replace("shared.proto", "double distance = 1;", "double length = 1;")
    contract.replace("shared.proto", "uint32 queue_us = 1;", "uint32 queue_us = 99;")
    contract.replace("gallery.proto", "int64 max_items = 8;", "int32 max_items = 8;")
    contract.replace("embedding_service.proto", "rpc Compare(", "rpc Match(")
    said = contract.breaking()
    assert 'changed name from "distance" to "length"' in said
    assert 'field "1" with name "queue_us"' in said
    assert '"max_items"' in said
    assert 'changed type from "int64" to "int32"' in said
    assert 'RPC "Compare"' in said


def test_a_name_against_the_convention_is_found(contract: Contract) -> None:
    contract.replace("shared.proto", "double distance = 1;", "double Distance = 1;")
    assert "lower_snake_case" in contract.lint()
