"""Nothing enters beyond the bound, and what left makes room."""

from __future__ import annotations

import pytest

from twinserve.errors import QueueFull
from twinserve.server.admission import Admission


def test_rows_count_from_entering_to_leaving() -> None:
    door = Admission(10, lambda: 0.1)
    with door.admit(6):
        assert door.rows == 6
        with door.admit(4):
            assert door.rows == 10
        assert door.rows == 6
    assert door.rows == 0


def test_a_full_server_refuses_with_the_time_its_rows_should_take() -> None:
    door = Admission(10, lambda: 0.1)
    with door.admit(8):
        with pytest.raises(QueueFull, match="limit is 10") as refused, door.admit(3):
            pass
        assert refused.value.retry_after == pytest.approx(0.8)
        assert door.rows == 8, "a refused call holds no place"
        with door.admit(2):
            pass


def test_a_call_that_fails_leaves_its_places() -> None:
    door = Admission(10, lambda: 0.1)
    with pytest.raises(ValueError, match="broken"), door.admit(5):
        raise ValueError("broken")
    assert door.rows == 0
