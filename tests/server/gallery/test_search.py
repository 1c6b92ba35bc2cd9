"""A search asks between pieces of its work whether to go on, and answers the same when it may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.server.gallery.folders import new, one_gallery, settings
from tests.server.gallery.test_graphs import settle
from twinserve.errors import DeadlineExceeded
from twinserve.server.gallery import GalleryLimits

PROBES = np.random.default_rng(4).standard_normal((40, 4)).astype(np.float32)
ITEMS = np.random.default_rng(5).standard_normal((400, 4)).astype(np.float32)


def stops_after(calls: int) -> tuple[Callable[[], None], list[int]]:
    made: list[int] = []

    def proceed() -> None:
        made.append(1)
        if len(made) > calls:
            raise DeadlineExceeded("nobody waits any more")

    return proceed, made


@pytest.mark.parametrize("exact", [True, False])
def test_a_search_that_nobody_waits_for_ends_at_its_next_piece(
    quick_folder: Path, exact: bool
) -> None:
    limits = GalleryLimits(exact_scan_below=10)
    with one_gallery(quick_folder, settings(), limits) as gallery:
        gallery.enroll([new(f"i{n}", vector) for n, vector in enumerate(ITEMS)]).result()
        whole = gallery.search(PROBES, k=3, exact=exact)
        proceed, made = stops_after(10_000)
        assert gallery.search(PROBES, k=3, exact=exact, proceed=proceed).results == whole.results
        assert len(made) > len(PROBES), "at least once a probe"
        for calls in (0, 1, 5, len(PROBES)):
            proceed, made = stops_after(calls)
            with pytest.raises(DeadlineExceeded):
                gallery.search(PROBES, k=3, exact=exact, proceed=proceed)
            assert len(made) == calls + 1, "nothing goes on behind it"


def test_a_segment_that_saw_far_does_not_end_the_search_for_another(quick_folder: Path) -> None:
    """Of a crowd of one subject the graph names no other at first, whatever lies elsewhere."""
    limits = GalleryLimits(exact_scan_below=50, segment_rows=1_024)
    rng = np.random.default_rng(6)
    crowd = 0.1 * rng.standard_normal((1_004, 4))
    behind = [[1.0 + n / 100, 0, 0, 0] for n in range(20)]
    far = 100 + rng.standard_normal((300, 4))
    with one_gallery(quick_folder, settings(), limits) as gallery:
        items = [new(f"c{n}", one, "crowd") for n, one in enumerate(crowd)]
        items += [new(f"b{n}", one, f"s{n}") for n, one in enumerate(behind)]
        gallery.enroll(items).result()
        gallery.enroll([new(f"f{n}", one) for n, one in enumerate(far)]).result()
        settle(gallery, len(far))
        probe = np.zeros((1, 4), dtype=np.float32)
        (hits,) = gallery.search(probe, k=5, max_distance=5.0).results
    assert [hit.subject for hit in hits.hits] == ["crowd", "s0", "s1", "s2", "s3"]
