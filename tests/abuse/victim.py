"""The server that is abused: its keys, its log, and what it takes of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests import twins
from tests.server import wire
from tests.server.security.guarded import Guarded
from tests.server.wire import Stubs
from twinserve.v1 import embedding_service_pb2 as embedding

PIXELS, _ = twins.classes_of_pixels(2, 2)
SOUND = embedding.EmbedRequest(model="image", inputs=[wire.tensor(PIXELS[0])])
# Lines of the log that say that something inside went wrong: no caller may bring them about.
FAULTS = ('"level":"error"', '"level":"critical"', "Traceback")


@dataclass
class Victim:
    """A server with keys; see `tests.abuse.conftest` for what it holds."""

    guarded: Guarded
    folder: Path
    channel: grpc.Channel = field(init=False)
    stubs: Stubs = field(init=False)

    def __post_init__(self) -> None:
        self.channel = self.guarded.server.channel()
        self.stubs = Stubs(self.channel)

    @property
    def grpc_port(self) -> int:
        return self.guarded.server.grpc_port

    @property
    def http_port(self) -> int:
        return self.guarded.server.http_port

    def bearer(self, name: str) -> str:
        """Return the header's value with a key, or with these words where there is none so."""
        return f"Bearer {self.guarded.keys.get(name, name)}"

    def memory(self, which: str = "VmRSS") -> float:
        """Return what the process holds, in MiB; `VmHWM` is the most since `forget_most`."""
        text = Path(f"/proc/{self.guarded.server.process.pid}/status").read_text()
        (line,) = (line for line in text.splitlines() if line.startswith(f"{which}:"))
        return int(line.split()[1]) / 1024

    def forget_most(self) -> None:
        """Begin to measure the most memory anew."""
        Path(f"/proc/{self.guarded.server.process.pid}/clear_refs").write_text("5")

    def processor_seconds(self) -> float:
        """Return the processor time that the process took so far."""
        parts = Path(f"/proc/{self.guarded.server.process.pid}/stat").read_text().rpartition(")")
        user, system = parts[2].split()[11:13]
        return (int(user) + int(system)) / 100  # ticks a second on every Linux that we know

    def faults(self) -> list[str]:
        """Return the lines of the log that tell of a fault inside."""
        return [line for line in self.guarded.server.errors if any(one in line for one in FAULTS)]
