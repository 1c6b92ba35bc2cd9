"""Miners take turns at the shares of a run that the config gives them."""

from __future__ import annotations

import pytest

from twinserve.errors import ConfigError
from twinserve.train import config, curriculum, mining


def test_one_miner_lasts_for_the_whole_run() -> None:
    stages = curriculum.stages("batch_hard")
    assert stages == (curriculum.Stage("batch_hard", 1.0),)
    assert {curriculum.at(stages, progress) for progress in (0.0, 0.5, 1.0, 1.5)} == {"batch_hard"}


def test_stages_share_the_run_equally_or_by_weight() -> None:
    thirds = curriculum.stages("random, semi_hard ,batch_hard")
    assert [stage.until for stage in thirds] == pytest.approx([1 / 3, 2 / 3, 1.0])
    stages = curriculum.stages("random,semi_hard:2,batch_hard:2")
    steps = [curriculum.at(stages, step / 10) for step in range(10)]
    assert steps == ["random"] * 2 + ["semi_hard"] * 4 + ["batch_hard"] * 4


@pytest.mark.parametrize(
    "mining", ["", "random,", ",random", "random:x", "random:-1", "a:inf", ":2"]
)
def test_what_is_no_curriculum_is_refused(mining: str) -> None:
    with pytest.raises(ConfigError, match="is no stage; write names separated by commas"):
        curriculum.stages(mining)


def test_the_config_knows_every_miner() -> None:
    known = {miner for miners in config.LOSSES.values() for miner in miners}
    assert known == {*mining.MINERS, "batch_all"}
