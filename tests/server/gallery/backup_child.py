"""The process that makes backups until it is killed, or until its files may grow no more."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np

from tests.server.gallery.folders import new, settings
from twinserve.errors import DiskFull
from twinserve.server.gallery import Galleries


def main() -> int:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    galleries = Galleries(folder / "data")
    galleries.open()
    galleries.create(settings())
    gallery = galleries.get("faces")
    for first in range(0, 3_000, 1_000):
        items = [
            new(f"i{n}", np.full(4, n + 1), "", {"note": "x" * 8_000})
            for n in range(first, first + 1_000)
        ]
        gallery.enroll(items).result()
    if mode == "full":
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            galleries.backup([], folder / "backups", "copy", lambda *_: None)
        except DiskFull as error:
            if error.retry_after and not list((folder / "backups").iterdir()):
                print("refused", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        galleries.backup([], folder / "backups", "copy", lambda *_: None)
        print("made", flush=True)
    else:
        for number in range(1_000):
            galleries.backup(
                [], folder / "backups", f"b{number}", lambda *_: print("step", flush=True)
            )
            print(f"made b{number}", flush=True)
    galleries.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
