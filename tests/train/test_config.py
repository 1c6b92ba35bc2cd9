"""A config says what it does not understand before any time is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinserve.errors import ConfigError
from twinserve.train.config import TrainConfig, load_config, presets


def test_overrides_go_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 3\nloss = "triplet"\nmargin = 1\n')
    config = load_config(
        file, ["seed=7", "train_groups=A, B", "calibrate_groups=C", "report_groups=D"]
    )
    assert (config.seed, config.loss, config.margin) == (7, "triplet", 1.0)
    assert isinstance(config.margin, float)
    assert config.train_groups == ("A", "B")
    assert config.max_steps == TrainConfig().max_steps


def test_the_omniglot_preset_loads_by_name() -> None:
    assert "omniglot" in presets()
    config = load_config("omniglot", ["max_steps=5"])
    assert config.report_groups == ("Latin",)
    assert config.max_steps == 5


def test_every_preset_loads() -> None:
    assert {name: load_config(name).twin for name in presets()} == {
        "omniglot": "conv4",
        "omniglot_resnet18": "resnet18",
    }


def test_rotations_are_refused_where_nothing_can_be_turned() -> None:
    with pytest.raises(ConfigError, match="twin=words takes none"):
        load_config(None, ["twin=words", "rotations=true"])


def test_a_config_survives_its_dictionary() -> None:
    config = load_config("omniglot", ["rotations=false", "scale=0.05"])
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sed=1", "known are .*seed"),
        ("seed=one", "seed is 'one'; it takes a whole number"),
        ("seed=1.5", "seed"),
        ("rotations=yes", "rotations is 'yes'; it takes true or false"),
        ("loss=hinge", "loss is 'hinge'; it must be one of contrastive, triplet"),
        ("max_steps=0", "max_steps is 0; it must be at least 1"),
        ("temperature=0", "temperature"),
        ("learning_rate=nan", "learning_rate"),
        ("items_per_class=1", "items_per_class is 1; it must be at least 2"),
        ("train_groups=A", "calibrate_groups"),
        ("twin=vgg", "twin is 'vgg'; it must be one of conv4, resnet18, .*mlp, words"),
        ("stem=large", "stem is 'large'; it must be one of imagenet, small"),
        ("mean_std=imagenet", "color_order=RGB"),
        ("weights=w.pth", "weights is set, which twin=conv4 cannot begin with"),
        ("word_dropout=1", "word_dropout is 1.0; it must be 0 or more, below 1"),
        ("vocabulary=0", "vocabulary is 0; it must be at least 1"),
        ("seed", "write key=value"),
    ],
)
def test_a_bad_override_is_refused_with_its_key(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seed = true", "seed is True"),
        ('seed = "1"', "seed is '1'"),
        ("train_groups = [1]", "train_groups"),
        ("colour = 1", "unknown setting 'colour'"),
        ("seed = ", "not a TOML file"),
    ],
)
def test_a_bad_file_is_refused_with_its_key(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_config(file)


def test_a_missing_file_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="omniglot"):
        load_config(tmp_path / "none.toml")


def test_a_group_in_two_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="'A' is named twice"):
        load_config(None, ["train_groups=A", "calibrate_groups=B", "report_groups=A"])
