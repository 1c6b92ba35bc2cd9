"""Galleries work where nothing but the data folder can be written, as in a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# In a mount namespace of its own: a data folder in memory, and all else read only, /tmp too.
CONFINED = """
set -e
mount --make-rprivate /
for place in / /tmp /var/tmp /dev/shm; do
    mount --bind "$place" "$place"
    mount -o remount,ro,bind "$place"
done
mount -t tmpfs tmpfs "$1"
! touch /tmp/written 2>/dev/null
exec "$2" -c "$3" "$1/data"
"""
WORK = """
import sys
from pathlib import Path
import numpy as np
from tests.server.gallery.folders import new, opened, settings, SMALL

root = Path(sys.argv[1])
vectors = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
with opened(root, SMALL) as galleries:
    galleries.create(settings())
    gallery = galleries.get("faces")
    gallery.enroll([new(f"i{n:02}", vectors[n], f"s{n}") for n in range(100)]).result()
    gallery.move("s3", ids=["i01", "i02"]).result()
    gallery.remove(ids=["i09"]).result()
    assert len(gallery.list_items(limit=500)[0]) == 99
    (hits,) = gallery.search(vectors[5][None], k=1).results
    assert hits.hits[0].item_id == "i05"
    galleries.backup([], root.parent, "backup", lambda *told: None)
print("done")
"""


def test_galleries_are_written_searched_and_backed_up_under_a_read_only_root(
    tmp_path: Path,
) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", CONFINED, "sh", str(tmp_path), sys.executable, WORK],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stderr
