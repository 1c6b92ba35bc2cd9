"""Page tokens are bound to their list."""

from __future__ import annotations

import pytest

from twinserve.errors import BadPageToken, LimitExceeded
from twinserve.server import paging


@pytest.mark.parametrize("last", ["a", "x" * 128, "größe:1"])
def test_a_token_leads_on_where_its_page_ended(last: str) -> None:
    assert paging.decode(paging.encode(b"list", last), b"list") == last


def test_no_token_is_the_first_page() -> None:
    assert paging.decode("", b"list") == ""


def test_a_token_of_another_list_is_refused() -> None:
    with pytest.raises(BadPageToken, match="another list"):
        paging.decode(paging.encode(b"one", "a"), b"other")


@pytest.mark.parametrize("token", ["%%%", "AAAA", "ü", "a" * 41, "=", "____________"])
def test_rubbish_is_refused(token: str) -> None:
    with pytest.raises(BadPageToken):
        paging.decode(token, b"list")


def test_page_sizes_have_a_default_and_bounds() -> None:
    assert paging.size(0, 100, 1000) == 100
    assert paging.size(7, 100, 1000) == 7
    for wrong in (-1, 1001):
        with pytest.raises(LimitExceeded, match="page_size"):
            paging.size(wrong, 100, 1000)
