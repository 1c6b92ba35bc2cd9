"""The alarm rings for a collapsed twin, once, and for no healthy one."""

from __future__ import annotations

import logging

import pytest
import torch

from twinserve.train.config import TrainConfig
from twinserve.train.health import WINDOW, CollapseAlarm, collapse
from twinserve.train.objective import Figures, Objective

TRIPLET = TrainConfig(loss="triplet", mining="batch_hard", metric="euclidean", margin=0.5)
NAN = float("nan")


def test_distances_near_zero_are_a_collapse_whatever_the_loss() -> None:
    point = [Figures(loss=4.8, active=0.9, genuine=1e-4, impostor=1e-4)] * WINDOW
    for loss in ("contrastive", "triplet", "supervised_contrastive", "cosine_mse", "concatenation"):
        sentence = collapse(point, TrainConfig(loss=loss))
        assert sentence is not None
        assert f"collapse to one point: over the last {WINDOW} steps" in sentence
        assert "lower learning_rate" in sentence
    sentence = collapse(point, TRIPLET)
    assert sentence is not None
    assert "mining=semi_hard,batch_hard" in sentence


def test_a_triplet_loss_that_stays_at_its_margin_is_a_collapse() -> None:
    stuck = [Figures(loss=0.502, active=1.0, genuine=0.06, impostor=0.058)] * WINDOW
    sentence = collapse(stuck, TRIPLET)
    assert sentence is not None
    assert "stays at its margin of 0.5" in sentence
    assert collapse([*stuck[:-1], Figures(0.4, 1.0, 0.06, 0.16)], TRIPLET) is None
    # Of another loss the number is a coincidence.
    assert collapse(stuck, TrainConfig(loss="cosine_mse", metric="euclidean")) is None


def test_a_healthy_twin_and_batches_that_say_nothing_ring_no_alarm() -> None:
    healthy = Figures(loss=0.1, active=0.2, genuine=0.01, impostor=0.9)
    assert collapse([healthy] * WINDOW, TRIPLET) is None
    assert collapse([], TRIPLET) is None
    assert collapse([Figures(0.0, 0.0, NAN, NAN)] * WINDOW, TRIPLET) is None
    point = Figures(loss=0.5, active=1.0, genuine=0.0, impostor=0.0)
    assert collapse([point, Figures(0.0, 0.0, NAN, 1.0)], TRIPLET) is not None


def test_batch_hard_on_equal_embeddings_is_recognised() -> None:
    """Figures of the objective itself, at the exact collapse that has no gradient to leave by."""
    embeddings = torch.full((8, 4), 0.5, requires_grad=True)
    labels = torch.arange(4).repeat_interleave(2)
    loss, figures = Objective(TRIPLET)(embeddings, labels, torch.Generator())
    loss.backward()
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
    assert figures.loss == pytest.approx(TRIPLET.margin)
    assert collapse([figures] * WINDOW, TRIPLET) is not None


def test_the_alarm_warns_once_and_not_before_its_window_is_full(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alarm = CollapseAlarm(TRIPLET)
    point = Figures(loss=0.5, active=1.0, genuine=0.0, impostor=0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(WINDOW - 1):
            alarm.note(point)
        alarm.check()
        assert not caplog.records
        alarm.note(point)
        alarm.check()
        alarm.note(point)
        alarm.check()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
