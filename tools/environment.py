"""Make or refresh one of the repository's virtual environments; the Makefile calls it.

In: the folder of the environment, what to install into it (`--extra dev`, or `--requirements`).
Out: the environment, or one sentence on stderr and exit status 1. Only the standard library is
used, since nothing else is there yet. It asks before it spends: a missing compiler or several GB of
CUDA that no GPU here could use are found before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
SUPPORTED = ((3, 11), (3, 12))

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class Missing(Exception):
    """Something that this machine lacks; the message is the one line that the user reads."""


def run_quietly(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output; a program that is not there counts as status 127."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(list(command), 127, "", str(error))


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Refuse a Python that the pins were not tried with."""
    if version not in SUPPORTED:
        raise Missing(
            f"Python {version[0]}.{version[1]} is not supported, 3.11 and 3.12 are: name one with "
            "make PYTHON=python3.12 (Debian: apt-get install python3 python3-venv python3-dev)"
        )


def check_venv(run: Run = run_quietly) -> None:
    """Refuse a Python without venv and pip, which Debian packs apart."""
    if run([sys.executable, "-c", "import venv, ensurepip"]).returncode != 0:
        raise Missing(
            f"{sys.executable} cannot make a virtual environment (venv or ensurepip is missing): "
            "apt-get install python3-venv"
        )


def check_compiler(
    run: Run = run_quietly,
    include: Path | None = None,
    compiler: str | None = None,
) -> None:
    """Compile a trivial program, since hnswlib is published as C++ source only.

    `include` is the folder where Python.h must lie, `compiler` the command to try; by default those
    of this Python and of $CXX, c++, g++, clang++ in that order.

    Raises:
        Missing: there is no working compiler, or Python.h is not there.
    """
    candidates = [compiler] if compiler else [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cc"
        source.write_text("#include <vector>\nint main() { return std::vector<int>().size(); }\n")
        works = any(
            run([*name.split(), "-std=c++14", str(source), "-o", f"{folder}/probe"]).returncode == 0
            for name in candidates
            if name
        )
    if not works:
        raise Missing(
            "no working C++ compiler, which hnswlib needs (it comes as source): "
            "apt-get install g++ python3-dev"
        )
    headers = include or Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise Missing(
            f"the C++ compiler is here but Python.h is not in {headers}, and hnswlib needs it (it "
            "comes as source): apt-get install python3-dev"
        )


def has_nvidia_gpu(run: Run = run_quietly, driver: Path = Path("/proc/driver/nvidia")) -> bool:
    """Say whether a CUDA build could be of any use on this machine."""
    return driver.exists() or run(["nvidia-smi", "-L"]).returncode == 0


def cuda_packages(report: str) -> list[str]:
    """Name the CUDA packages that the packages in pip's JSON report ask for.

    `report` is the output of `pip install --dry-run --report -`. What only an extra asks for, or
    another system than Linux, does not count.
    """
    found = []
    for entry in json.loads(report)["install"]:
        for requirement in entry["metadata"].get("requires_dist", []):
            name = re.split(r"[^a-z0-9-]", requirement.lower(), maxsplit=1)[0]
            if name.startswith(("nvidia-", "cuda-")) and "extra ==" not in requirement:
                found.append(name)
    return sorted(found)


def check_torch(resolve: Run, pip: Sequence[str], gpu: bool, goal: str = "demo") -> None:
    """Ask pip what torch would bring, and refuse CUDA where there is no GPU to use it.

    Raises:
        Missing: the resolution holds CUDA packages and `gpu` is False, or pip could not resolve.
    """
    # Without dependencies one page of metadata is read; with them, some thirty.
    ask = ["install", "--dry-run", "--quiet", "--no-deps", "--report", "-", torch_pin()]
    answer = resolve([*pip, *ask])
    if answer.returncode != 0:
        reason = answer.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise Missing(f"pip finds no torch for this Python and machine: {reason[0]}")
    found = cuda_packages(answer.stdout) if sys.platform == "linux" else []
    if found and not gpu:
        raise Missing(
            f"torch would bring several GB of CUDA ({len(found)} packages) and no NVIDIA GPU is "
            "here. Choose 'CPU' at pytorch.org's Get Started page and pass the index address that "
            f"it shows: make {goal} TORCH_INDEX=<address>; or take CUDA anyway: "
            f"make {goal} CUDA=yes"
        )


def torch_pin() -> str:
    """Read the one torch that the constraints allow, as a requirement (`torch==…`)."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise Missing(f"{CONSTRAINTS.name} pins no torch: add a line torch==<version>")


def installed(python: Path, distribution: str) -> bool:
    """Say whether a distribution is already in the environment of `python`."""
    probe = f"import importlib.metadata as m; m.version({distribution!r})"
    return run_quietly([str(python), "-c", probe]).returncode == 0


def pip_environment() -> dict[str, str]:
    """Give pip's variables: every install and every isolated build takes the pinned versions."""
    return {
        **os.environ,
        # Old pips read the first for builds too, new ones the second.
        "PIP_CONSTRAINT": str(CONSTRAINTS),
        "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Code for this machine's very CPU would die with an illegal instruction on another.
        "HNSWLIB_NO_NATIVE": os.environ.get("HNSWLIB_NO_NATIVE", "1"),
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} {vector_flags()}".strip(),
    }


def vector_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the compiler's flags for vectors of eight numbers, where this machine has them.

    x86 processors do, of Intel since 2013 and of AMD since 2015; with them hnswlib builds a graph
    in half of the time (docs/benchmarks.md).
    """
    try:
        found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return "-mavx2 -mfma" if found and {"avx2", "fma"} <= set(found[1].split()) else ""


def install(python: Path, arguments: Sequence[str]) -> None:
    """Run pip with the pins; its own output is shown only as far as it says something new.

    Raises:
        Missing: pip failed; what it said stands above.
    """
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    if subprocess.run(command, cwd=ROOT, env=pip_environment(), check=False).returncode != 0:
        raise Missing(f"pip install {' '.join(arguments)} failed; pip's words stand above")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, make the environment, and turn what is missing into one sentence."""
    parser = argparse.ArgumentParser(description="Make or refresh a virtual environment.")
    parser.add_argument("folder", type=Path, help="the environment, made if it is not there")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--extra", help="install the project itself, editable, with this extra")
    what.add_argument("--requirements", type=Path, help="install a requirements file instead")
    parser.add_argument("--torch-index", default="", help="package index to take torch from")
    parser.add_argument("--cuda", default="", help="'yes': take CUDA though no GPU is here")
    parser.add_argument("--goal", default="demo", help="the make target, for messages")
    options = parser.parse_args(argv)
    try:
        make(options)
    except Missing as error:
        print(f"twinserve: {error}", file=sys.stderr)
        return 1
    return 0


def make(options: argparse.Namespace) -> None:
    """Check, make the environment, install; the checks come first, so that a refusal is cheap."""
    check_python()
    check_venv()
    folder: Path = options.folder
    python = folder / "bin" / "python"
    if options.extra and not installed(python, "hnswlib"):
        check_compiler()
    same = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if run_quietly([str(python), "-c", same]).returncode != 0:
        # Not there, broken, or made by another Python than the one now named.
        print(f"making {folder} with Python {sys.version.split()[0]}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if options.requirements:
        # Such a file has pins of its own; the project's constraints do not hold for them.
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "-r", str(options.requirements)], cwd=ROOT, check=True)
        return
    if not installed(python, "torch"):
        if options.torch_index:
            # Only torch is taken from there, so no other package can be swapped by that index.
            install(python, ["--index-url", options.torch_index, "--no-deps", torch_pin()])
        elif options.cuda != "yes":
            pip = [str(python), "-m", "pip"]
            check_torch(run_quietly, pip, has_nvidia_gpu(), options.goal)
    print(f"installing twinserve[{options.extra}] into {folder} (a minute or two)", flush=True)
    install(python, ["--editable", f".[{options.extra}]"])


if __name__ == "__main__":
    sys.exit(main())
