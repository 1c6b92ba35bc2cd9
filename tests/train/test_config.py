"""A config says what it does not understand before any time is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinserve.errors import ConfigError
from twinserve.train.config import TrainConfig, load_config, presets
from twinserve.train.forms import kind_of


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
        "faces": "conv5",
        "omniglot": "conv4",
        "omniglot_background": "conv5",
        "omniglot_resnet18": "resnet18",
    }


def test_groups_are_not_turned_where_nothing_is() -> None:
    with pytest.raises(ConfigError, match="set rotations=true"):
        load_config(None, ["turns_groups=true"])


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
        (
            "loss=hinge",
            "loss is 'hinge'; it must be one of contrastive, cosine_mse, .*metric_learning",
        ),
        ("mining=easy", "mining is 'easy'; it must be of random for loss=supervised_contrastive"),
        ("mining=batch_hard", "of random for loss=supervised_contrastive"),
        ("mining=random,", "mining is 'random,', where '' is no stage"),
        ("mining=random:0", "where 'random:0' is no stage"),
        ("different_cosine=1", "different_cosine is 1.0; it must be -1 or more, below 1"),
        ("loss_parameters=margin", "loss_parameters is 'margin'; it takes a table"),
        ("loss_parameters=margin=0.1", "loss=supervised_contrastive has keys of its own"),
        ("max_steps=0", "max_steps is 0; it must be at least 1"),
        ("temperature=0", "temperature"),
        ("learning_rate=nan", "learning_rate"),
        ("items_per_class=1", "items_per_class is 1; it must be at least 2"),
        ("train_groups=A", "calibrate_groups"),
        ("twin=vgg", "twin is 'vgg'; it must be one of conv4, conv5, resnet18, .*mlp, words"),
        ("stem=large", "stem is 'large'; it must be one of imagenet, small"),
        ("mean_std=imagenet", "color_order=RGB"),
        ("weights=w.pth", "weights is set, which twin=conv4 cannot begin with"),
        ("word_dropout=1", "word_dropout is 1.0; it must be 0 or more, below 1"),
        ("vocabulary=0", "vocabulary is 0; it must be at least 1"),
        ("mirror_sum=true", "none is ever trained on; set mirror=0.5"),
        ("mirror=1.5", "mirror is 1.5; it must be between 0 and 1"),
        ("brightness=-0.1", "brightness is -0.1; it must be between 0 and 1"),
        ("fold=1", "fold is 1; it must be 0 where folds is 0"),
        ("folds=5", "fold is 0; it must be from 1 to folds=5"),
        ("folds=1", "folds is 1; it must be 2 or more"),
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


def test_every_loss_takes_its_miners_and_no_others() -> None:
    load_config(None, ["loss=triplet", "mining=random,semi_hard:2,batch_hard:2,batch_all"])
    load_config(None, ["loss=concatenation", "mining=random,batch_hard"])
    with pytest.raises(ConfigError, match="it must be of random, semi_hard, batch_hard for"):
        load_config(None, ["loss=contrastive", "mining=random,batch_all"])
    with pytest.raises(ConfigError, match="of random for loss=metric_learning:ArcFaceLoss"):
        load_config(None, ["loss=metric_learning:ArcFaceLoss", "mining=batch_hard"])


def test_a_loss_of_cosines_is_refused_where_lengths_would_decide() -> None:
    for loss in ("cosine_mse", "multiple_negatives"):
        with pytest.raises(ConfigError, match="set metric=cosine or normalized=true"):
            load_config(None, [f"loss={loss}", "metric=euclidean", "normalized=false"])
        load_config(None, [f"loss={loss}", "metric=euclidean"])


def test_the_table_of_a_librarys_loss_is_read_from_a_file_and_from_an_override(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'loss = "metric_learning:TripletMarginLoss"\n'
        "[loss_parameters]\nmargin = 0.1\nswap = true\n"
        'distance = {type = "LpDistance", power = 2}\n'
    )
    config = load_config(file)
    table = {"margin": 0.1, "swap": True, "distance": {"type": "LpDistance", "power": 2}}
    assert config.loss_parameters == table
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert len({config, load_config(file)}) == 1
    for written in ("margin=0.2,swap=true", "{margin = 0.2, swap = true}"):
        config = load_config(file, [f"loss_parameters={written}"])
        assert config.loss_parameters == {"margin": 0.2, "swap": True}


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (["split_column=part"], "split_column is set, which names the parts already"),
        (["train_groups=A", "calibrate_groups=B", "report_groups=C"], "train_groups is set"),
        (["calibrate_fraction=0.8"], "calibrate_fraction=0.8 takes the others"),
    ],
)
def test_folds_are_refused_where_they_would_divide_nothing(others: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(None, ["folds=5", "fold=5", *others])


def test_folds_of_pairs_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("first,second,same\na,b,1\n")
    config = load_config(None, ["twin=words", f"data={table}", "folds=5", "fold=1"])
    with pytest.raises(ConfigError, match="train several seeds instead"):
        kind_of(config)
