"""Shared fixtures: a small twin, and servers in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import twins

START_SECONDS = 60


def require(present: object, sentence: str) -> None:
    """Skip with this sentence where something is not at hand; CI has all, so there it fails."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks what .ci/run installs: {sentence}")
    pytest.skip(sentence)


@dataclass
class RunningServer:
    """A server in its own process, SERVING."""

    process: subprocess.Popen[str]
    grpc_port: int
    http_port: int
    errors: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def channel(self) -> grpc.Channel:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        return grpc.insecure_channel(self.target, options)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def start(*flags: str | Path, environment: dict[str, str] | None = None) -> RunningServer:
    """Start `twinserve serve` on free ports and wait until it says SERVING."""
    command = [sys.executable, "-m", "twinserve.server"]
    command += ["--grpc-port", "0", "--http-port", "0", *map(str, flags)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    errors: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    stderr = process.stderr

    def drain() -> None:
        with stderr:
            errors.extend(stderr)

    threading.Thread(target=drain, daemon=True).start()
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    process.stdout.close()
    found = re.fullmatch(r"twinserve SERVING grpc=\S+:(\d+) http=\S+:(\d+)\n", line)
    if not found:
        process.kill()
        process.wait()
        raise AssertionError(f"the server said {line!r} instead of SERVING:\n{''.join(errors)}")
    return RunningServer(process, int(found[1]), int(found[2]), errors)


@pytest.fixture(scope="session")
def twin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small calibrated image twin (28 x 28 grey, 16 dimensions, euclidean), made in no time."""
    path = tmp_path_factory.mktemp("twin") / "twin.onnx"
    path.write_bytes(twins.small_image_twin())
    return path


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Start servers that end with the test."""
    running: list[RunningServer] = []

    def begin(*flags: str | Path, **settings: dict[str, str]) -> RunningServer:
        server = start(*flags, **settings)
        running.append(server)
        return server

    yield begin
    for server in running:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="module")
def server(twin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for a module's round trips, with the small twin."""
    running = start("--model", twin_file, "--data-dir", tmp_path_factory.mktemp("data"))
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def drawings() -> Path:
    """Omniglot's small background set, as the repository ships it."""
    return Path(__file__).parent.parent / "data/omniglot/images_background_small1.zip"


@pytest.fixture(scope="session")
def trained(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A conv4 twin trained for seconds on real drawings, and exported: (run folder, twin.onnx)."""
    from twinserve.export.exporter import export
    from twinserve.train.config import load_config
    from twinserve.train.loop import train

    folder = tmp_path_factory.mktemp("trained")
    overrides = [f"data={drawings}", f"out={folder / 'run'}", "max_steps=60", "evaluate_every=60"]
    train(load_config("omniglot", [*overrides, "one_shot_trials=200"]), progress=False)
    export(folder / "run", folder / "twin.onnx", name="drawings")
    return folder / "run", folder / "twin.onnx"
