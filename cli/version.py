"""`twinserve --version`: what this installation is made of, read without importing it.

Versions are those of the installed packages' metadata, onnxruntime's providers those whose
libraries lie in it; whether they load on this machine is what `twinserve doctor` tells.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from twinserve import __version__, formats

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_PACKAGES = ("grpcio", "protobuf", "numpy", "hnswlib", "torch")
_PROVIDER = "libonnxruntime_providers_{}.so"


def facts() -> dict[str, Any]:
    """Return everything as JSON takes it; what is not installed or not known is None."""
    runtime = next(((name, found) for name in _RUNTIMES if (found := _version(name))), None)
    return {
        "version": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "onnxruntime": None
        if runtime is None
        else {"package": runtime[0], "version": runtime[1], "providers": _providers()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "formats": {
            "manifest": ".".join(map(str, formats.MANIFEST)),
            "catalog": formats.CATALOG,
            "gallery": formats.GALLERY,
            "gallery_snapshot": formats.SNAPSHOT,
            "gallery_export": formats.EXPORT,
        },
    }


def show(*, as_json: bool) -> None:
    """Print the facts: the first line is the version alone, for scripts that read one line."""
    found = facts()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"twinserve {found['version']}")
    runtime = found["onnxruntime"]
    rows = [
        ("commit", found["commit"] or "not known"),
        ("Python", f"{found['python']} on {found['platform']}"),
        (
            "onnxruntime",
            "not installed"
            if runtime is None
            else f"{runtime['version']} ({runtime['package']}: {', '.join(runtime['providers'])})",
        ),
        *((name, version or "not installed") for name, version in found["packages"].items()),
        ("formats", ", ".join(f"{name} {one}" for name, one in found["formats"].items())),
    ]
    for name, value in rows:
        print(f"  {name:<12}{value}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    """Name the providers that onnxruntime was built with, by the libraries beside it."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "capi"
    others = ("cuda", "tensorrt")
    return [name for name in others if (folder / _PROVIDER.format(name)).exists()] + ["cpu"]


def _commit() -> str | None:
    """Return the commit of a built package, or that of the clone which this code lies in."""
    here = Path(__file__).resolve()
    try:
        from twinserve import _build  # type: ignore[attr-defined]  # written by the build

        return str(_build.COMMIT)
    except ImportError:
        pass
    root = here.parents[1]
    if not (root / ".git").exists():
        return None
    asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
