"""Starting what is measured, asking it, and holding it still while another has its turn.

Workers that a server starts are counted, held still and ended with it. Those that are not measured
at the moment are stopped with SIGSTOP: they poll, collect garbage and write logs otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving import forms, h2load, machine, wire
from benchmarks.serving.forms import Form
from benchmarks.serving.limit import Layout
from benchmarks.serving.subjects import Subject
from twinserve import manifest

START_SECONDS, SETTLE_SECONDS = 60.0, 20.0
ROOT = Path(__file__).parents[2]
PEERS = {
    "mosec": forms.BYTES,
    "litserve": forms.LITSERVE,
    "pytriton": forms.TRITON,
    "bentoml": forms.BENTOML,
}


@dataclass
class Server:
    """One running server."""

    name: str
    form: Form
    process: subprocess.Popen[str]
    port: int
    http: str = ""  # address of our own HTTP port
    probe: bytes = b""  # a call of one item, once known

    def usage(self) -> machine.Usage:
        """Return what it has used so far, its workers included."""
        return machine.usage(self.process.pid)

    def metrics(self) -> str:
        """Return our own server's metrics, as Prometheus reads them."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=30) as reply:
            text: str = reply.read().decode()
        return text

    def signal(self, number: int) -> None:
        """Send a signal to every process of it."""
        for process in machine.members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run, and hold it still again once it has nothing left to do."""
        self.signal(signal.SIGCONT)
        try:
            yield
            self._settle()
        finally:
            self.signal(signal.SIGSTOP)

    def _settle(self) -> None:
        """Wait until what a load left behind is done with.

        It would be run in this server's next turn; and a run that is held still for a minute would
        look to ours like one that takes a minute.
        """
        if self.probe:
            self.ask(self.probe)  # those that take calls as they come are then done
        until = time.monotonic() + SETTLE_SECONDS
        while self.http and not re.search(r"^twinserve_admitted_rows 0", self.metrics(), re.M):
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name} still holds rows after {SETTLE_SECONDS} s")
            time.sleep(0.05)

    @contextlib.contextmanager
    def connected(
        self, count: int = 1, timeout: float | None = None
    ) -> Iterator[list[wire.Connection]]:
        """Open connections for calls of its form, and close them in the end."""
        with wire.connected(self.port, self.form.path, count, timeout=timeout) as connections:
            yield connections

    def ask(self, body: bytes) -> forms.Embedding:
        """Send one request and read the reply.

        Raises:
            OSError: nobody answers there, or not with an embedding.
        """
        if not self.form.grpc:
            names = dict(header.split(": ", 1) for header in self.form.headers)
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.port}{self.form.path}", data=body, headers=names
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                return self.form.decode(reply.read())
        with self.connected() as connections:
            (call,) = wire.paced(connections, [body], [0.0])
        if call.status != wire.OK:
            raise OSError(f"{self.name} answered with status {call.status}")
        return self.form.decode(call.reply[5:])

    def load(
        self, body: Path, in_flight: int, seconds: float, reply_bytes: int = 0, warm: float = 0.5
    ) -> h2load.Window:
        """Put h2load on it for a time."""
        return h2load.run(
            f"http://127.0.0.1:{self.port}{self.form.path}",
            body,
            grpc=self.form.grpc,
            in_flight=in_flight,
            seconds=seconds,
            warm=warm,
            reply_bytes=reply_bytes,
            headers=self.form.headers,
            cpu=lambda: self.usage().cpu,
        )

    def stop(self) -> int:
        """End it as an operator would, and return its exit code; -9 if it had to be killed."""
        self.signal(signal.SIGCONT)
        family = machine.members(self.process.pid)
        self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            for process in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self.process.wait()


def free_port() -> int:
    """Return a port that was free just now, with two free ones behind it, as Triton wants."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            for beside in (1, 2):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port + beside))
            return port


@contextlib.contextmanager
def _running(
    name: str, form: Form, command: Sequence[str], environment: Mapping[str, str], port: int
) -> Iterator[Server]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=errors if port else subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, **environment, "PORT": str(port)},
        )
        server = Server(name, form, process, port)
        try:
            yield server
        except Exception as error:
            errors.seek(0)
            error.add_note(f"{name} said: {errors.read()[-2000:]}")
            raise
        finally:
            server.stop()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def ours(twin: Path, flags: Sequence[str] = (), *, still: bool = True) -> Iterator[Server]:
    """Run our server on a twin, as it comes; held still unless `still` is False."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "twinserve.server", "--model", str(twin)]
        command += ["--data-dir", folder, "--grpc-port", "0", "--http-port", "0", *flags]
        with _running("ours", forms.CONTRACT, command, {}, 0) as server:
            assert server.process.stdout is not None
            said = server.process.stdout.readline()
            found = re.search(r"grpc=\S+:(\d+) http=(\S+)", said)
            if found is None:
                raise RuntimeError(f"our server said {said!r} instead of SERVING")
            server.port, server.http = int(found[1]), found[2]
            if still:
                server.signal(signal.SIGSTOP)
            yield server


@contextlib.contextmanager
def echo(kind: str, reply_bytes: int) -> Iterator[Server]:
    """Run an echo server, `aio` or `poll`, whose replies have so many bytes."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving.peers.echo"]
    settings = {"ECHO": kind, "REPLY": str(reply_bytes)}
    with _running(f"echo {kind}", forms.CONTRACT, command, settings, port) as server:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), wire.connected(port, forms.EMBED):
                break
            if time.monotonic() > until or server.process.poll() is not None:
                raise RuntimeError("the echo server did not start")
            time.sleep(0.05)
        server.signal(signal.SIGSTOP)
        yield server


@contextlib.contextmanager
def peer(
    name: str, subject: Subject, layout: Layout, environment: Path | None, folder: Path
) -> Iterator[Server]:
    """Run the bare server, or a published one, with the layout that is best for onnxruntime.

    Args:
        name: "bare", or of `PEERS`.
        subject: what it serves.
        layout: its workers and their threads.
        environment: folder of the peer's virtual environment; None takes this one.
        folder: for files.

    Raises:
        RuntimeError: it did not answer in time.
    """
    tokenizer = None
    text = manifest.read_tokenizer(subject.path)
    if text is not None:
        tokenizer = folder / f"{subject}.tokenizer.json"
        tokenizer.write_text(text)
    settings = {
        "TWIN": json.dumps(
            {
                "path": str(subject.path.resolve()),
                "threads": layout.threads,
                "spinning": layout.spinning,
                "tokenizer": None if tokenizer is None else str(tokenizer),
            }
        ),
        "WORKERS": str(layout.workers),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
        # What some of them send home otherwise.
        "BENTOML_DO_NOT_TRACK": "True",
    }
    python = sys.executable if environment is None else str(environment / "bin/python")
    port = free_port()
    form = PEERS.get(name, forms.CONTRACT)
    command = [python, "-m", f"benchmarks.serving.peers.{name}"]
    if name in PEERS:
        command[-1] += "_server"
    if name == "mosec":
        command += ["--port", str(port), "--address", "127.0.0.1", "--timeout", "60000"]
        command += ["--log-level", "error"]
    if name == "bentoml":
        command = [
            python,
            "-m",
            "bentoml",
            "serve",
            "benchmarks.serving.peers.bentoml_server:Embedder",
        ]
        command += ["--port", str(port), "--host", "127.0.0.1"]
    with _running(name, form, command, settings, port) as server:
        body = form.body(subject, [forms.given(subject)])
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                server.ask(body)
                break
            except (OSError, urllib.error.URLError) as error:
                if time.monotonic() > until or server.process.poll() is not None:
                    raise RuntimeError(f"{name} did not start") from error
                time.sleep(0.2)
        server.signal(signal.SIGSTOP)
        yield server


class Limit:
    """Raw onnxruntime on one subject, in a process of its own; see `limit`."""

    def __init__(self, subject: Subject, seconds: float, folder: Path) -> None:
        row = folder / f"{subject}.npy"
        np.save(row, subject.row())
        command = [sys.executable, "-m", "benchmarks.serving.limit", "--twin", str(subject.path)]
        command += ["--row", str(row), "--cores", str(machine.cores()), "--seconds", str(seconds)]
        text = manifest.read_tokenizer(subject.path)
        if text is not None:
            tokenizer = folder / f"{subject}.limit.json"
            tokenizer.write_text(text)
            command += ["--tokenizer", str(tokenizer)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        found = json.loads(self._read())
        self.layout = Layout(**found["layout"])
        self.batch: int = found["batch"]
        self.tried: dict[str, dict[str, float]] = found["tried"]

    def rate(self, seconds: float) -> float:
        """Measure for a time: rows per second."""
        return float(self._ask(f"{seconds}"))

    def decoding(self, picture: Path, seconds: float) -> float:
        """Return the CPU seconds that decoding one picture for this twin takes."""
        return float(self._ask(f"decode {seconds} {picture}"))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the raw limit ended; see its error above")
        return line
