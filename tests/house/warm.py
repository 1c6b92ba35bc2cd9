"""Runs `twinserve` commands in forks of one warm process, for documents that hold dozens of them.

A command spends most of its time on imports. `python -m tests.house.warm FOLDER` imports once, puts
a program `twinserve` into the folder, says "ready", and answers it: each command is the whole
command line in a process of its own, with the caller's folder, environment, input and outputs.
Verbs that are not of a client are left to the program that stands behind this one on the path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

VERBS = ("compare", "embed", "enroll", "gallery", "health", "model", "search", "verify")
CALLER = """#!{python} -IS
import json, os, socket, sys
if not sys.argv[1:] or sys.argv[1] not in {verbs}:
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
caller = socket.socket(socket.AF_UNIX)
caller.connect({address!r})
request = dict(argv=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
socket.send_fds(caller, [json.dumps(request).encode()], [0, 1, 2])
status = caller.recv(1)
sys.exit(status[0] if status else 1)
"""


@contextlib.contextmanager
def commands() -> Iterator[Path]:
    """Give a folder whose `twinserve` is warm, as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.house.warm", folder],
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Path(folder)
            process.terminate()


def main(folder: Path) -> None:
    """Answer callers until the process is ended."""
    from twinserve.cli.__main__ import _verb

    for verb in VERBS:
        _verb(verb)
    program = shutil.which("twinserve", path=str(Path(sys.executable).parent))
    assert program is not None, "twinserve is not installed beside this Python"
    address = str(folder / "socket")
    caller = folder / "twinserve"
    text = CALLER.format(python=sys.executable, verbs=VERBS, program=program, address=address)
    caller.write_text(text)
    caller.chmod(0o755)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended commands leave nothing behind
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    listening.close()
                    _command(connection)


def _command(connection: socket.socket) -> None:
    """Be the command that a caller asks for, and end."""
    from twinserve.cli.__main__ import main as twinserve

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, descriptors, _, _ = socket.recv_fds(connection, 1 << 18, 3)
    request = json.loads(asked)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    status: object = 1
    try:
        status = twinserve(request["argv"])
    except SystemExit as end:  # argparse's
        status = end.code
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        connection.sendall(bytes([status if isinstance(status, int) else 0]))
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
