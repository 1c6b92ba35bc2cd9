"""Every abuse case, on the wire; see `tests.abuse.cases`."""

from __future__ import annotations

import pytest

from tests.abuse import page
from tests.abuse.asking import serves
from tests.abuse.cases import CASES, Case
from tests.abuse.victim import Victim

LONG = pytest.mark.long


@pytest.mark.parametrize(
    "case", [pytest.param(one, id=str(one), marks=LONG if one.is_long else ()) for one in CASES]
)
def test_an_abuse_has_its_answer_and_leaves_the_server_as_it_was(
    victim: Victim, case: Case
) -> None:
    faults = len(victim.faults())
    victim.forget_most()
    before = victim.memory()
    seen = case.attempt(victim)
    grown = victim.memory("VmHWM") - before
    assert serves(victim), "a sound call afterwards"
    assert seen == case.answer
    assert grown < case.mib, f"memory grew by {grown:.0f} MiB"
    assert not victim.faults()[faults:]


def test_the_page_holds_these_cases_and_their_answers() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "python -m tests.abuse.page writes it anew"
    assert len(CASES) >= 40
    assert len({str(case) for case in CASES}) == len(CASES)
