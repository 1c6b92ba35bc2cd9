"""The contract as clients see it: names and numbers that must never change, and a comment on each.

The snapshot beside this file was taken from the agreed contract. A failing test here means that
clients built yesterday would break; adding a name is fine, and then the snapshot is grown with it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from twinserve.oip import inference_pb2
from twinserve.v1 import (
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_pb2,
    model_service_pb2,
    shared_pb2,
)

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("contract_names.json")
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
STUBS = (
    shared_pb2,
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_pb2,
    model_service_pb2,
    inference_pb2,
)

DECLARATION = re.compile(
    r"^\s*(?:(?:message|enum|service|oneof|rpc)\s+(?P<block>\w+)"
    r"|(?:repeated\s+|optional\s+)?(?:map<[^>]+>|[\w.]+)\s+(?P<field>\w+)\s*=\s*\d+"
    r"|(?P<value>[A-Z][A-Z0-9_]*)\s*=\s*\d+)"
)


def names_and_numbers(stubs: Any) -> dict[str, dict[str, str]]:
    """Flatten stubs to {message, enum or service: {field, value or call: what the wire sees}}."""
    found: dict[str, dict[str, str]] = {}
    types = descriptor_pb2.FieldDescriptorProto.Type
    for stub in stubs:
        proto = descriptor_pb2.FileDescriptorProto()
        stub.DESCRIPTOR.CopyToProto(proto)
        messages = [(proto.package, message) for message in proto.message_type]
        enums = [(proto.package, enum) for enum in proto.enum_type]
        while messages:
            scope, message = messages.pop()
            name = f"{scope}.{message.name}"
            found[name] = {
                field.name: " ".join(
                    [
                        str(field.number),
                        "repeated" if field.label == field.LABEL_REPEATED else "",
                        "optional" if field.proto3_optional else "",
                        field.type_name.lstrip(".") or types.Name(field.type)[5:].lower(),
                    ]
                )
                .replace("  ", " ")
                .replace("  ", " ")
                for field in message.field
            }
            messages += [(name, nested) for nested in message.nested_type]
            enums += [(name, nested) for nested in message.enum_type]
        for scope, enum in enums:
            found[f"{scope}.{enum.name}"] = {value.name: str(value.number) for value in enum.value}
        for service in proto.service:
            found[f"{proto.package}.{service.name}"] = {
                call.name: f"{'stream ' * call.client_streaming}{call.input_type.lstrip('.')} -> "
                f"{'stream ' * call.server_streaming}{call.output_type.lstrip('.')}"
                for call in service.method
            }
    return found


def undocumented(text: str) -> list[str]:
    """Name every declaration whose comment above does not begin with its own name."""
    missing = []
    comment: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("//"):
            comment.append(bare.removeprefix("//").strip())
            continue
        found = DECLARATION.match(line)
        if found and not bare.startswith(("syntax", "package", "import", "option ", "reserved")):
            name = found["block"] or found["field"] or found["value"]
            if not comment or not re.match(rf"{name}\b", comment[0]):
                missing.append(name)
        comment = []
    return missing


def test_every_name_and_number_that_clients_rely_on_is_still_there() -> None:
    agreed = json.loads(SNAPSHOT.read_text())
    ours = names_and_numbers(STUBS)

    assert len(agreed) > 80
    changed = {
        f"{owner}.{name}": (what, ours.get(owner, {}).get(name))
        for owner, members in agreed.items()
        for name, what in members.items()
        if ours.get(owner, {}).get(name) != what
    }
    assert changed == {}, "agreed against ours; a client built yesterday would break"
    assert set(agreed) <= set(ours)


def test_every_new_name_is_written_into_the_snapshot() -> None:
    """Otherwise the next change to it would go unseen."""
    assert names_and_numbers(STUBS) == json.loads(SNAPSHOT.read_text())


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_every_declaration_of_the_contract_has_a_comment_that_begins_with_its_name(
    path: Path,
) -> None:
    assert undocumented(path.read_text()) == []


def test_the_comment_check_sees_what_lacks_one() -> None:
    text = """
    // Pair is two.
    message Pair {
      // first of the two.
      Input first = 1;
      Input second = 2;
      // another thing
      map<string, int64> counts = 3;
    }
    // ORDER_UP rises.
    enum Order { ORDER_UNSPECIFIED = 0; }
    """
    assert undocumented(text) == ["second", "counts", "Order"]


def test_every_enum_of_ours_begins_with_an_unspecified_zero() -> None:
    for stub in STUBS[:-1]:
        for enum in stub.DESCRIPTOR.enum_types_by_name.values():
            assert enum.values_by_number[0].name.endswith("_UNSPECIFIED"), enum.full_name
