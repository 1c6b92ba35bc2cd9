"""A server with keys in a process of its own, and what tests ask it with."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_status import rpc_status

from tests.conftest import RunningServer
from twinserve.client import Client
from twinserve.server.security import keys
from twinserve.server.security.access import Role


@dataclass
class Guarded:
    """A server with keys, and the keys."""

    server: RunningServer
    path: Path
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def audit(self) -> Path:
        return self.path.with_name("audit.jsonl")

    def lines(self) -> list[dict[str, Any]]:
        """Return what the audit log says."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()]

    def check_logs(self) -> None:
        """Find no key, nor a part of one, in any log."""
        said = "".join(self.server.errors) + self.audit.read_text()
        assert "twinserve" in said
        for name, key in self.keys.items():
            secret = key.removeprefix(f"tws_{name}_")
            assert secret not in said, name
            assert secret[:12] not in said, name
        assert "Bearer" not in said

    def make(self, name: str, role: Role, **wishes: Any) -> None:
        self.keys[name] = keys.make(self.path, name, role, **wishes)

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.keys.get(name, name)}"),) if name else ()

    def client(self, name: str) -> Client:
        return Client(self.server.target, api_key=self.keys.get(name, name), timeout=20)

    def reload(self) -> None:
        """Have the file read again now, and wait until the server says that it was."""
        seen = len(self.server.errors)
        self.server.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if any("keys" in line for line in self.server.errors[seen:]):
                return
            time.sleep(0.01)
        raise AssertionError("the server did not read its keys again")


def refusal(call: Any, request: Any, metadata: Any) -> status_pb2.Status:
    with pytest.raises(grpc.RpcError) as refused:
        list(call(request, metadata=metadata))
    status = rpc_status.from_call(refused.value)
    assert status is not None, refused.value
    return status
