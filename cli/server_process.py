"""A `twinserve serve` in a process of its own, for as long as a block runs.

In: the server's flags. Out: its addresses, read from the SERVING line. The server is stopped by
SIGTERM, as an operator would, and whoever leaves the block by an error leaves no process behind.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from twinserve.errors import Unavailable

_START_SECONDS, _STOP_SECONDS = 120.0, 60.0
_SERVING = re.compile(r"twinserve SERVING grpc=(\S+:\d+) http=(\S+:\d+)")


class ServerProcess:
    """Starts on entering the block; `target` and `http` are host:port.

    Args:
        flags: of `twinserve serve`; free ports are picked.
        log: file for what the server says on standard error.

    Raises:
        Unavailable: on entering, when the server does not come to serve; with its last words.
    """

    target: str
    http: str

    def __init__(self, flags: list[str], log: Path) -> None:
        self._command = [sys.executable, "-m", "twinserve.cli", "serve", *flags]
        self._command += ["--grpc-port", "0", "--http-port", "0"]
        self._log = log

    def __enter__(self) -> Self:
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True
            )
        # A server that hangs while starting ends the wait by being killed: its line is then empty.
        alarm = threading.Timer(_START_SECONDS, self._process.kill)
        alarm.start()
        try:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        except BaseException:
            self._process.kill()
            raise
        finally:
            alarm.cancel()
        found = _SERVING.match(line)
        if found is None:
            self._process.kill()
            self._process.communicate()
            last = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise Unavailable(
                f"the server did not start: {last[-1] if last else 'it said nothing'}; "
                f"its log is {self._log}"
            )
        self.target, self.http = found[1], found[2]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def metrics(self) -> str:
        """Return what /metrics says."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
        return text

    def peak_bytes(self) -> int | None:
        """Return the most memory that the process held so far, where the system tells (Linux)."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else None

    def stop(self) -> int:
        """Stop by SIGTERM, and return the exit code; 0 means that all work was finished.

        Raises:
            Unavailable: it did not end in time.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(
                f"the server did not end within {_STOP_SECONDS:.0f} s of SIGTERM; "
                f"its log is {self._log}"
            ) from error
