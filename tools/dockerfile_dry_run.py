"""Run the Dockerfile's steps in order in a clean folder, for machines without a container engine.

In: the Dockerfile, a Python 3.12, and a twin to serve if one is at hand. Out: what ran, what could
not (apt, users, owners), and exit status 1 when a step failed, torch or a compiler reached the last
stage, or the server did not become healthy. Each stage is a folder of its own; the image's paths
are rewritten into it, and the last stage's PATH holds no compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
# The image's own paths: rewritten into the stage's folder.
IMAGE_PATHS = ("/source", "/wheels", "/opt/twinserve", "/models", "/data", "/backups")
# What only the image's root can do; left out and reported.
NEEDS_IMAGE = ("apt-get", "useradd", "chown", "rm -rf /var")
# The commands that the last stage may find, besides its Python: everything else is out of reach.
PLAIN_COMMANDS = ("sh", "mkdir", "rm", "cat", "ls", "true", "uname", "env")
COMMIT = "0000000000000000000000000000000000000001"  # as --build-arg would say it
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")


@dataclass
class Stage:
    """One FROM of the Dockerfile, as far as it has run."""

    name: str
    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    exec_forms: dict[str, list[str]] = field(default_factory=dict)

    def inside(self, text: str) -> str:
        """Rewrite the image's paths in a command into this stage's folder."""
        paths = "|".join(re.escape(path) for path in IMAGE_PATHS)
        return re.sub(rf"(?<![\w./-])({paths})(?![\w-])", lambda m: f"{self.root}{m[1]}", text)

    def folder(self, path: str) -> Path:
        """Give the folder on this machine that stands for a path of the image."""
        return self.root / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")


def instructions(text: str) -> list[tuple[str, str]]:
    """Parse a Dockerfile to (instruction, rest), joined over continued lines, comments dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            found.append((word.upper(), rest.strip()))
    return found


def runnable(command: str) -> tuple[str, list[str]]:
    """Divide a chain of && into what can run here and what only the image can do."""
    if "||" in command:
        return command, []
    parts = [part.strip() for part in command.split("&&")]
    kept = [part for part in parts if not part.startswith(NEEDS_IMAGE)]
    return " && ".join(kept), [part for part in parts if part.startswith(NEEDS_IMAGE)]


def fail(message: str) -> NoReturn:
    """Stop with one sentence."""
    sys.exit(f"dockerfile_dry_run: {message}")


class DryRun:
    """Walks through the Dockerfile and keeps what it saw."""

    def __init__(self, work: Path, python: str, arguments: Mapping[str, str]) -> None:
        """`python` stands for the image's python3.12, `arguments` for --build-arg."""
        self.work = work
        self.python = python
        self.arguments = dict(arguments)
        self.stages: list[Stage] = []
        self.left_out: list[str] = []
        allowed = (ROOT / ".dockerignore").read_text().splitlines()
        self.context = {line[1:] for line in allowed if line.startswith("!")}

    def walk(self, text: str) -> Stage:
        """Run every instruction; returns the last stage."""
        for word, rest in instructions(text):
            print(f"{word} {rest}", flush=True)
            if word == "FROM":
                name = rest.split()[-1]
                root = self.work / name
                root.mkdir()
                self.stages.append(Stage(name, root))
            elif not self.stages and word == "ARG":
                continue
            else:
                self.step(self.stages[-1], word, rest)
        return self.stages[-1]

    def step(self, stage: Stage, word: str, rest: str) -> None:
        """Run one instruction inside a stage."""
        if word == "ARG":
            for one in rest.split():
                name, _, default = one.partition("=")
                stage.variables[name] = self.arguments.get(name, default)
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                stage.variables[name] = stage.inside(value).replace("$PATH", self.path(stage))
        elif word == "WORKDIR":
            stage.workdir = rest
            stage.folder(".").mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            self.copy(stage, sources, target)
        elif word == "RUN":
            self.run(stage, rest)
        elif word in ("ENTRYPOINT", "CMD"):
            stage.exec_forms[word] = json.loads(rest)
        elif word == "HEALTHCHECK":
            stage.exec_forms[word] = json.loads(rest.partition("CMD")[2])
        elif word not in ("USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "LABEL"):
            fail(f"{word} is an instruction that this script does not know: teach it")
        elif word == "USER":
            self.left_out.append(f"{word} {rest}")

    def copy(self, stage: Stage, sources: Sequence[str], target: str) -> None:
        """Copy from the context, and only what .dockerignore lets through."""
        for source in sources:
            if source not in self.context:
                fail(f"COPY {source}: .dockerignore keeps it out of the context")
            origin = ROOT / source
            place = stage.folder(target)
            if origin.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(origin, place, symlinks=True, ignore=ignore)
            else:
                place = place / origin.name if target.endswith("/") else place
                shutil.copy(origin, place)

    def run(self, stage: Stage, command: str) -> None:
        """Run one RUN, or fail; a bind mount from another stage becomes a copy for that step."""
        lent: list[Path] = []
        while command.startswith("--mount="):
            option, _, command = command.partition(" ")
            mount = dict(part.split("=", 1) for part in option.removeprefix("--mount=").split(","))
            origin = next(one for one in self.stages if one.name == mount["from"])
            place = stage.folder(mount["target"])
            shutil.copytree(origin.folder(mount["source"]), place)
            lent.append(place)
        kept, dropped = runnable(command)
        self.left_out += [f"RUN {part}" for part in dropped]
        if kept:
            done = subprocess.run(
                ["/bin/sh", "-ec", stage.inside(kept)],
                cwd=stage.folder("."),
                env=self.environment(stage),
                check=False,
            )
            if done.returncode != 0:
                fail(f"RUN {kept} ended with {done.returncode} in stage {stage.name}")
        for place in lent:
            shutil.rmtree(place)

    def path(self, stage: Stage) -> str:
        """Give the stage's PATH: its python3.12, and a compiler in no stage but the first."""
        commands = self.work / f"{stage.name}-commands"
        if not commands.exists():
            commands.mkdir()
            (commands / "python3.12").symlink_to(self.python)
            for name in PLAIN_COMMANDS:
                if where := shutil.which(name):
                    (commands / name).symlink_to(where)
        return str(commands) if stage is not self.stages[0] else f"{commands}:/usr/bin:/bin"

    def environment(self, stage: Stage) -> dict[str, str]:
        """Give a step nothing of this machine but how to reach its package index."""
        reach = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        kept = {k: v for k, v in os.environ.items() if k.upper().startswith(reach)}
        # A constraint from outside would not be there in a real build.
        kept = {
            k: v for k, v in kept.items() if k not in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
        }
        home = (
            {"HOME": os.environ["HOME"]} if stage is self.stages[0] else {"HOME": str(stage.root)}
        )
        return {**kept, **home, "LANG": "C.UTF-8", "PATH": self.path(stage), **stage.variables}

    def program(self, stage: Stage, command: Sequence[str]) -> list[str]:
        """Find an exec form's program as the container would, on the stage's PATH."""
        where = shutil.which(command[0], path=self.environment(stage)["PATH"])
        if where is None:
            fail(f"{command[0]} is not on the last stage's PATH")
        return [where, *(stage.inside(word) for word in command[1:])]


def check_last_stage(dry: DryRun, stage: Stage) -> None:
    """Fail when what must not be in the image is there."""
    env = dry.environment(stage)
    found = [name for name in COMPILERS if shutil.which(name, path=env["PATH"])]
    if found:
        fail(f"compilers in the last stage: {', '.join(found)}")
    listed = subprocess.run(
        [*dry.program(stage, ["python"]), "-m", "pip", "list", "--format", "json"],
        env=env,
        capture_output=True,
        check=True,
        text=True,
    )
    names = {one["name"].lower() for one in json.loads(listed.stdout)}
    for name in ("torch", "onnx", "onnxscript", "pytest"):
        if name in names:
            fail(f"{name} is in the last stage, which must not hold it")
    runtime = {"onnxruntime", "onnxruntime-gpu"} & names
    if "twinserve" not in names or len(runtime) != 1:
        fail(f"the last stage must hold twinserve and one onnxruntime, it holds {sorted(names)}")
    asked = ["python", "-c", "import twinserve._build as build; print(build.COMMIT)"]
    said = subprocess.run(
        dry.program(stage, asked),
        env=env,
        cwd=stage.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if said.stdout.strip() != COMMIT:
        fail(f"the last stage does not know its commit: {said.stdout}{said.stderr}")
    size = sum(path.stat().st_size for path in stage.root.rglob("*") if path.is_file())
    print(f"last stage: {len(names)} packages, {size / 2**20:.0f} MiB, {runtime.pop()}")


def check_serving(dry: DryRun, stage: Stage, twin: Path) -> None:
    """Start ENTRYPOINT and CMD on free ports, ask HEALTHCHECK, stop with SIGTERM."""
    shutil.copy(twin, stage.folder("/models/twin.onnx"))
    words = stage.exec_forms["ENTRYPOINT"] + stage.exec_forms["CMD"]
    command = [*dry.program(stage, words), "--grpc-port", "0", "--http-port", "0"]
    env = dry.environment(stage)
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = None
        for line in server.stdout:
            print(f"  {line.rstrip()}", flush=True)
            if found := re.search(r"SERVING.*grpc=\S*?:(\d+)", line):
                port = found[1]
                break
        if port is None:
            fail(f"the server ended with {server.wait()} before it was SERVING")
        probe = [word.replace("50051", port) for word in stage.exec_forms["HEALTHCHECK"]]
        healthy = subprocess.run(dry.program(stage, probe), env=env, check=False, timeout=30)
        if healthy.returncode != 0:
            fail(f"the health check ended with {healthy.returncode}")
        server.send_signal(signal.SIGTERM)
        if server.wait(timeout=60) != 0:
            fail(f"SIGTERM ended the server with {server.returncode}, not 0")
    finally:
        server.kill()
        server.wait()
    print("served, healthy, stopped with 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run everything in a temporary folder."""
    parser = argparse.ArgumentParser(description="Run the Dockerfile's steps without an engine.")
    parser.add_argument("--python", default="python3.12", help="stands for the image's python3.12")
    parser.add_argument("--runtime", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--twin", type=Path, help="a twin to serve from the last stage")
    parser.add_argument("--file", type=Path, default=ROOT / "Dockerfile")
    options = parser.parse_args(argv)
    asked = [options.python, "-c", "import sys; print(sys.executable)"]
    try:
        python = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        fail(f"{options.python} does not run: name a Python with --python")
    with tempfile.TemporaryDirectory(prefix="twinserve-image-") as folder:
        dry = DryRun(Path(folder), python, {"RUNTIME": options.runtime, "COMMIT": COMMIT})
        last = dry.walk(options.file.read_text())
        check_last_stage(dry, last)
        subprocess.run(
            dry.program(last, ["twinserve", "--help"]),
            env=dry.environment(last),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        if options.twin:
            check_serving(dry, last, options.twin)
        else:
            dry.left_out.append("ENTRYPOINT and HEALTHCHECK: no --twin given")
    print("not run, since only an image can:")
    for step in dry.left_out:
        print(f"  {step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
