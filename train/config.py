"""One frozen dataclass for a training, read once and passed down.

In: a TOML file or the name of a preset, then `key=value` overrides typed by the dataclass. Out: a
checked `TrainConfig`, which the checkpoint keeps. Every number that shapes a run stands here, so
that two runs of equal configs on equal data are equal.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinserve.distance import Metric
from twinserve.errors import ConfigError
from twinserve.train import curriculum

PRESETS = Path(__file__).parent / "presets"

# Which twins take which modality.
RESNETS = ("resnet18", "resnet34", "resnet50")
TWINS = {
    "image": ("conv4", "conv5", *RESNETS, "image_encoder"),
    "tensor": ("mlp",),
    "text": ("words", "text_encoder"),
}
# Models of other people's making, fine-tuned: they begin with the folder that `weights` names.
ENCODERS = ("text_encoder", "image_encoder")
# Twins that can begin with weights from a file or folder.
WITH_WEIGHTS = (*RESNETS, "words", *ENCODERS)
# A twin of the user's own, such as my_net:make; see `train.own`.
_OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
# A stage of a ResNet, or a block of one.
_CUT = re.compile(r"layer[1-4](\.\d+)?")
# `freeze` for all of an encoder.
WHOLE_ENCODER = "encoder"

# Losses, and what may choose the pairs or triplets that they look at. Those of one miner, "random",
# look at the whole batch or draw by themselves.
_OF_PAIRS = ("random", "semi_hard", "batch_hard")
LOSSES = {
    "contrastive": _OF_PAIRS,
    "cosine_mse": _OF_PAIRS,
    "concatenation": _OF_PAIRS,
    "triplet": (*_OF_PAIRS, "batch_all"),
    "supervised_contrastive": ("random",),
    "multiple_negatives": ("random",),
}
# Those that take pairs, and those that take triplets; all of them take classes.
LOSSES_OF_LINKS = {
    "pairs": ("contrastive", "cosine_mse", "concatenation", "multiple_negatives"),
    "triplets": ("triplet", "contrastive", "cosine_mse", "concatenation", "multiple_negatives"),
}
# What begins a loss of pytorch-metric-learning, such as metric_learning:ArcFaceLoss.
LIBRARY_LOSS = "metric_learning:"
# What a data set is made of.
FORMS = ("labelled", "pairs", "triplets")

_CHOICES: dict[str, tuple[str, ...]] = {
    "color_order": ("L", "RGB"),
    "resize": ("stretch", "crop", "pad"),
    "resample": ("nearest", "box", "bilinear", "bicubic", "lanczos"),
    "takes": ("", *TWINS),
    "stem": ("imagenet", "small"),
    "mean_std": ("data", "imagenet"),
    "metric": tuple(metric.value for metric in Metric),
    "form": ("", *FORMS),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training.

    Raises:
        ConfigError: a value outside its range, or settings that contradict each other.
    """

    # Where from, where to.
    data: str = ""  # folder or zip of images (class = innermost folder), .csv, .parquet, .npz, .npy
    out: str = ""  # run folder
    max_broken_images: int = 0  # so many undecodable images are left out; one more stops the run

    form: str = ""  # labelled, pairs or triplets; "": as the header of a CSV says
    items: str = ""  # file of the vectors that a CSV names by row or id: .npy, .npz or .parquet
    labels: str = ""  # file of a .npy's labels, .npy or one a line; "": NAME_labels.npy or .txt

    # The split, by whole classes, or of pairs and triplets by what hangs together. A column goes
    # before named groups (the folder above the class), and these before fractions.
    split_column: str = ""  # of a CSV or Parquet: train, calibrate (dev, val) or report (test)
    train_groups: tuple[str, ...] = ()
    calibrate_groups: tuple[str, ...] = ()
    report_groups: tuple[str, ...] = ()
    allow_shared_items: bool = False  # pairs of a named part may hold items of another
    calibrate_fraction: float = 0.2  # of the classes (or pairs), where no groups are named
    report_fraction: float = 0.2
    # Cross-validation: the classes are dealt into so many parts, and part `fold`, from 1, reports.
    # Equal seeds deal equally, so that over all folds every class reports once.
    folds: int = 0  # 0: none; goes before report_fraction
    fold: int = 0

    # The columns of a CSV: a name in its header, or a number, from 1.
    text_column: str = ""  # of labelled items; "": the one named text, else the first
    label_column: str = ""  # "": the one named label, category, class or intent, else the second
    columns: tuple[
        str, ...
    ] = ()  # item, label; first, second, judgement; anchor, positive, negative
    score_range: str = ""  # of judgements that are scores, such as 0..5; "": they are 0 or 1

    # The input contract, which serving repeats; an encoder's folder states its own. Of pictures:
    image_size: int = 28  # pixels, height and width
    color_order: str = "L"
    resize: str = "stretch"
    resample: str = "bilinear"
    ink_inverted: bool = False  # dark ink on white becomes bright on black, so that paper is zero
    mean_std: str = "data"  # that pixels are normalised by: the training part's, or imagenet's
    # Of texts:
    max_tokens: int = 128  # a longer text is cut; an encoder's folder may say less

    # The twin.
    twin: str = "conv4"  # or module:callable, a network of your own
    takes: str = ""  # a network of your own: image, tensor or text; "": image
    twin_parameters: dict[str, Any] = dataclasses.field(
        default_factory=dict, hash=False
    )  # likewise
    # resnet: file with torchvision's names; words: word vectors as text; encoders: folder of
    # transformers or sentence-transformers, or its name in their local cache.
    weights: str = ""
    width: int = 64  # conv4: channels of each block; conv5: of the first, later ones have more
    stem: str = "imagenet"  # resnet: "small" is for pictures of 28 to 64 pixels
    cut: str = ""  # resnet: the last stage or block kept, such as layer3 or layer3.1; "": all
    hidden: int = 256  # mlp: units of the hidden layer
    word_dimension: int = 256  # words: coordinates of a word's vector, unless a file gives it
    vocabulary: int = 8000  # words: entries that the tokenizer keeps at most
    pooling: str = (
        ""  # encoders: how states become one vector, such as mean; "": as the folder says
    )
    dimension: int = 0  # 0: 64, or as many coordinates as an encoder gives
    matryoshka: tuple[int, ...] = ()  # smaller dimensions that the loss is summed over too
    normalized: bool = True
    metric: str = "cosine"
    # Pictures are embedded together with their mirror images, and the sum is taken: left and right
    # become one, at twice the cost of serving. Train with mirror=0.5.
    mirror_sum: bool = False

    # The loss.
    loss: str = "supervised_contrastive"
    mining: str = "random"  # or from easy to hard: "random,semi_hard:2", weights of the steps
    temperature: float = 0.1  # supervised contrastive and multiple negatives
    margin: float = 0.5  # contrastive and triplet, on plain distances of `metric`
    different_cosine: float = -1.0  # cosine_mse: target of label 0, -1 or 0; of 1 it is 1
    # Of a metric_learning: loss's constructor, such as {margin = 0.1, reducer = "MeanReducer"}.
    loss_parameters: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    # Batches: P classes of K items, some of them from one group alone.
    classes_per_batch: int = 32
    items_per_class: int = 4
    one_group_share: float = 0.5
    pairs_per_batch: int = 64  # of data that are pairs or triplets
    balanced_pairs: bool = False  # as many pairs of the same as of different items in each batch
    rotations: bool = False  # turns by 90, 180 and 270 degrees are classes of their own
    # With rotations: a batch of one group turns all its classes alike, so that they are harder to
    # tell apart, and classes of other groups fill it up.
    turns_groups: bool = False

    # Augmentation of pictures: uniform in [-limit, limit].
    rotate_degrees: float = 0.0
    scale: float = 0.0  # 0.2 draws factors between 0.8 and 1.2
    shear: float = 0.0
    shift: float = 0.0  # share of the picture's side
    brightness: float = 0.0  # share of the whole range from black to white
    contrast: float = 0.0  # 0.2 draws factors between 0.8 and 1.2, about the picture's mean
    # Chances, of each picture.
    mirror: float = 0.0  # left becomes right; 0.5 for faces and most things, 0 for letters
    erase: float = 0.0  # a rectangle is painted over, sides of a tenth to a half of the picture's

    # Augmentation of texts, words: so many of their tokens are left out at random.
    word_dropout: float = 0.1

    # Fine-tuning, of encoders.
    freeze: str = ""  # "encoder", or a number: the embedding of tokens and so many layers behind it
    layer_decay: float = 1.0  # factor of the learning rate from each layer to the one below
    head_learning_rate: float = 1e-3  # of what begins at random: projection, a loss's own weights

    # Where the steps run, and of how many rows at a time.
    device: str = "auto"  # cpu, cuda, or auto: the GPU where there is one
    precision: str = "auto"  # fp32, bf16 or fp16 in the twin's forward pass; auto: half on a GPU
    mini_batch: int = 0  # rows embedded at a time, so that a batch may outgrow memory; 0: all

    # The run.
    learning_rate: float = 0.0  # 0: 1e-3, or 2e-5 of encoders
    warmup_steps: int = 0  # in which the learning rate rises from 0
    weight_decay: float = 0.0  # encoders: not of biases and norms
    # Decay, by step, of an average of the weights, which is what is evaluated, kept and exported:
    # 0.999 averages over some thousand steps; 0 keeps the weights of the step itself.
    weight_average: float = 0.0
    gradient_clip: float = 10.0  # largest norm of all gradients together
    max_steps: int = 1000
    max_seconds: float = 600.0  # a guard; the learning rate follows max_steps
    evaluate_every: int = 100  # steps
    save_seconds: float = 60.0  # between states to resume from, kept at evaluations
    tensorboard: bool = False  # write figures for TensorBoard too
    patience: int = 0  # evaluations without a better one before the run stops; 0 never stops early
    one_shot_ways: int = 20
    one_shot_trials: int = 1000
    # Rates that the calibrate part must have the evidence for, or the training does not begin.
    false_accept_rates: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learning_rate:
            rate = 2e-5 if self.twin in ENCODERS else 1e-3
            object.__setattr__(self, "learning_rate", rate)
        if not self.dimension and self.twin not in ENCODERS:
            object.__setattr__(self, "dimension", 64)
        for key, allowed in _CHOICES.items():
            value = getattr(self, key)
            _require(value in allowed, key, value, f"one of {', '.join(allowed)}")
        self._check_twin()
        self._check_loss()
        for key in (
            *("image_size", "max_tokens", "width", "hidden", "word_dimension"),
            *("vocabulary", "max_steps", "evaluate_every"),
        ):
            value = getattr(self, key)
            _require(value >= 1, key, value, "at least 1")
        _require(self.image_size >= 16, "image_size", self.image_size, "at least 16 pixels")
        for key in ("classes_per_batch", "items_per_class", "pairs_per_batch", "one_shot_ways"):
            value = getattr(self, key)
            _require(value >= 2, key, value, "at least 2")
        for key in (
            *("temperature", "margin", "learning_rate", "head_learning_rate"),
            *("gradient_clip", "max_seconds"),
        ):
            value = getattr(self, key)
            _require(0 < value < float("inf"), key, value, "a finite number above 0")
        for key in (
            "max_broken_images",
            "patience",
            "seed",
            "dimension",
            "warmup_steps",
            "mini_batch",
            "save_seconds",
            "weight_decay",
            "rotate_degrees",
            "shear",
        ):
            value = getattr(self, key)
            _require(0 <= value < float("inf"), key, value, "0 or more")
        for key in (
            *("one_group_share", "calibrate_fraction", "report_fraction"),
            *("scale", "shift", "brightness", "contrast", "mirror", "erase", "word_dropout"),
        ):
            value = getattr(self, key)
            _require(0 <= value <= 1, key, value, "between 0 and 1")
        _require(
            0 <= self.weight_average < 1,
            *("weight_average", self.weight_average, "0 or more, below 1"),
        )
        _require(self.scale < 1, "scale", self.scale, "below 1")
        _require(
            0 <= self.word_dropout < 1, "word_dropout", self.word_dropout, "0 or more, below 1"
        )
        _require(self.one_shot_trials >= 1, "one_shot_trials", self.one_shot_trials, "at least 1")
        for rate in self.false_accept_rates:
            _require(0 < rate < 1, "false_accept_rates", rate, "above 0 and below 1")
        self._check_columns()
        if self.mean_std == "imagenet" and (self.color_order != "RGB" or self.ink_inverted):
            raise ConfigError(
                "mean_std is 'imagenet', which is of RGB photographs as they are; set "
                "color_order=RGB and ink_inverted=false, or mean_std=data"
            )
        if self.rotations and self.modality != "image":
            raise ConfigError(f"rotations turn pictures; twin={self.twin} takes none")
        if self.mirror_sum and self.modality != "image":
            raise ConfigError(
                f"mirror_sum is of pictures, and twin={self.twin} takes none; unset it"
            )
        if self.mirror_sum and not self.mirror:
            raise ConfigError(
                "mirror_sum adds what a mirror image gives, and mirror is 0, so that none is ever "
                "trained on; set mirror=0.5"
            )
        if self.turns_groups and not self.rotations:
            raise ConfigError(
                "turns_groups turns groups as a whole, and rotations is false, so that nothing is "
                "turned; set rotations=true, or unset turns_groups"
            )
        if self.weights and self.twin not in WITH_WEIGHTS and not self.is_own:
            raise ConfigError(
                f"weights is set, which twin={self.twin} cannot begin with; "
                f"those that can are {', '.join(WITH_WEIGHTS)}"
            )
        if self.cut and self.twin not in RESNETS:
            raise ConfigError(
                f"cut is {self.cut!r}, which is of {', '.join(RESNETS)}; twin is {self.twin}: "
                "unset it"
            )
        cut_fits = not self.cut or _CUT.fullmatch(self.cut) is not None
        rule = "layer1 to layer4, or a block of one, such as layer3.1"
        _require(cut_fits, "cut", self.cut, rule)
        self._check_encoder()
        self._check_matryoshka()
        held_out = self.calibrate_fraction + self.report_fraction
        if held_out >= 1 and not self.folds:
            raise ConfigError(
                f"calibrate_fraction + report_fraction is {held_out:g}; keep it below 1, "
                "so that classes are left to train on"
            )
        self._check_folds()
        named = [bool(g) for g in (self.train_groups, self.calibrate_groups, self.report_groups)]
        if any(named) and not all(named):
            raise ConfigError(
                "groups are named for a part of the split only; name train_groups, "
                "calibrate_groups and report_groups, or none of them"
            )
        every = (*self.train_groups, *self.calibrate_groups, *self.report_groups)
        twice = sorted({group for group in every if every.count(group) > 1})
        if twice:
            raise ConfigError(
                f"group {twice[0]!r} is named twice in the split; "
                "a class that trains must neither calibrate nor report"
            )

    def _check_folds(self) -> None:
        if not self.folds:
            _require(self.fold == 0, "fold", self.fold, "0 where folds is 0; set folds=5, say")
            return
        _require(self.folds >= 2, "folds", self.folds, "2 or more, or 0")
        _require(1 <= self.fold <= self.folds, "fold", self.fold, f"from 1 to folds={self.folds}")
        if self.train_groups or self.split_column:
            key = "train_groups" if self.train_groups else "split_column"
            raise ConfigError(
                f"folds is {self.folds} and {key} is set, which names the parts already; unset one"
            )
        left = 1 - 1 / self.folds - self.calibrate_fraction
        if left <= 0:
            raise ConfigError(
                f"folds={self.folds} reports on 1/{self.folds} of the classes, and "
                f"calibrate_fraction={self.calibrate_fraction:g} takes the others; lower it"
            )

    def _check_twin(self) -> None:
        known = [twin for twins in TWINS.values() for twin in twins]
        rule = f"one of {', '.join(known)}, or module:callable for a network of your own"
        _require(self.twin in known or self.is_own, "twin", self.twin, rule)
        for key in ("takes", "twin_parameters"):
            if getattr(self, key) and not self.is_own:
                raise ConfigError(
                    f"{key} is set, which is of a network of your own (module:callable); twin is "
                    f"{self.twin}: unset it"
                )

    def _check_loss(self) -> None:
        of_library = self.loss.startswith(LIBRARY_LOSS)
        allowed = f"one of {', '.join(LOSSES)}, or {LIBRARY_LOSS}NAME of pytorch-metric-learning"
        _require(of_library or self.loss in LOSSES, "loss", self.loss, allowed)
        miners = ("random",) if of_library else LOSSES[self.loss]
        for stage in curriculum.stages(self.mining):
            rule = f"of {', '.join(miners)} for loss={self.loss}"
            _require(stage.mining in miners, "mining", self.mining, rule)
        if self.loss_parameters and not of_library:
            raise ConfigError(
                f"loss_parameters is {self.loss_parameters!r}, which is for the losses of "
                f"{LIBRARY_LOSS}; loss={self.loss} has keys of its own"
            )
        _require(
            -1 <= self.different_cosine < 1,
            "different_cosine",
            self.different_cosine,
            "-1 or more, below 1",
        )
        of_cosines = self.loss in ("cosine_mse", "multiple_negatives")
        if of_cosines and not self.normalized and self.metric != Metric.COSINE:
            raise ConfigError(
                f"loss={self.loss} trains cosines, but embeddings of any length are to be compared "
                "by their euclidean distance; set metric=cosine or normalized=true"
            )

    def _check_encoder(self) -> None:
        _require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "above 0, at most 1")
        known = not self.freeze or self.freeze == WHOLE_ENCODER or self.freeze.isdecimal()
        _require(known, "freeze", self.freeze, f"{WHOLE_ENCODER}, or a number of layers")
        if self.twin in ENCODERS:
            if not self.weights:
                raise ConfigError(
                    f"twin={self.twin} begins with a model made elsewhere, and weights is not set; "
                    "name its folder, as sentence-transformers or transformers saved it, or its "
                    "name in their local cache"
                )
            return
        for key in ("pooling", "freeze"):
            if getattr(self, key):
                raise ConfigError(
                    f"{key} is {getattr(self, key)!r}, which is of {' and '.join(ENCODERS)}; "
                    f"twin is {self.twin}: unset it"
                )
        if self.layer_decay != 1.0:
            raise ConfigError(
                f"layer_decay is {self.layer_decay}, which is of {' and '.join(ENCODERS)}; twin is "
                f"{self.twin}: unset it"
            )

    def _check_matryoshka(self) -> None:
        for size in self.matryoshka:
            _require(size >= 1, "matryoshka", self.matryoshka, "numbers from 1")
            if self.dimension and size >= self.dimension:
                raise ConfigError(
                    f"matryoshka names {size}, and the embedding has {self.dimension} coordinates; "
                    "name smaller dimensions alone, such as matryoshka=16,32"
                )

    def _check_columns(self) -> None:
        if self.columns and (self.text_column or self.label_column):
            raise ConfigError(
                "columns is set, and text_column or label_column too; name the columns once"
            )
        if self.columns and self.form:
            takes = 2 if self.form == "labelled" else 3
            _require(len(self.columns) == takes, "columns", self.columns, f"{takes} names")
        if self.score_range and self.form not in ("", "pairs"):
            raise ConfigError(f"score_range is of pairs, and form is {self.form!r}; unset one")
        if self.score_range:
            least, most = self.scores
            _require(least < most, "score_range", self.score_range, "LEAST..MOST, such as 0..5")

    @property
    def scores(self) -> tuple[float, float]:
        """The least and the greatest score of a pair; 0 and 1 where `score_range` is unset."""
        least, _, most = (self.score_range or "0..1").partition("..")
        try:
            return float(least), float(most)
        except ValueError:
            return 0.0, 0.0

    @property
    def modality(self) -> str:
        """What the twin takes: image, tensor or text."""
        if self.is_own:
            return self.takes or "image"
        return next(modality for modality, twins in TWINS.items() if self.twin in twins)

    @property
    def is_own(self) -> bool:
        """Whether the twin is a network of the user's own, `module:callable`."""
        return _OWN.fullmatch(self.twin) is not None

    @property
    def channels(self) -> int:
        """Channels of the pixels: 1 for L, 3 for RGB."""
        return 1 if self.color_order == "L" else 3

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` takes back."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """Return a file that `load_config` takes back: what differs from the defaults."""
        default = TrainConfig().to_dict()
        lines = [
            f"{key} = {_toml(value)}"
            for key, value in self.to_dict().items()
            if value != default[key]
        ]
        return "".join(f"{line}\n" for line in lines)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainConfig:
        """Check names and types, then values.

        Raises:
            ConfigError: names the key, and the known ones or the type it takes.
        """
        types = _types()
        return TrainConfig(**{key: _typed(key, value, types) for key, value in values.items()})


def load_config(source: Path | str | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a config: the defaults, under a file or preset, under `key=value` overrides.

    Args:
        source: path of a TOML file, or the name of a preset, such as "omniglot".
        overrides: `key=value` each; lists are separated by commas: `train_groups=Korean,Greek`.

    Raises:
        ConfigError: an unknown key, a wrong type, a value outside its range, no such file.
    """
    return TrainConfig.from_dict(
        _overridden({} if source is None else _read_toml(source), overrides)
    )


def overridden(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """Return a config under `key=value` overrides.

    Raises:
        ConfigError: as `load_config`.
    """
    return TrainConfig.from_dict(_overridden(config.to_dict(), overrides))


def _overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    types = _types()
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"{override!r} is no setting; write key=value, such as seed=1")
        values[key.strip()] = _parse(key.strip(), text.strip(), types)
    return values


def presets() -> tuple[str, ...]:
    """Return the names that `load_config` knows beside files."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def _read_toml(source: Path | str) -> dict[str, Any]:
    path = PRESETS / f"{source}.toml" if str(source) in presets() else Path(source)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the config {source} ({error.strerror}); give a TOML file, "
            f"or one of the presets: {', '.join(presets())}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not a TOML file: {error}") from error


def _types() -> dict[str, Any]:
    return typing.get_type_hints(TrainConfig)


def _expect_known(key: str, types: Mapping[str, Any]) -> None:
    if key not in types:
        raise ConfigError(f"unknown setting {key!r}; known are {', '.join(sorted(types))}")


def _typed(key: str, value: Any, types: Mapping[str, Any]) -> Any:
    """Return the value as the field's type, without guessing: 1 is a float, "1" and true are not
    integers.
    """
    _expect_known(key, types)
    kind = types[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(kind) is dict:
        if isinstance(value, dict):
            return dict(value)
    elif kind == tuple[float, ...]:
        if isinstance(value, list | tuple) and all(type(part) in (int, float) for part in value):
            return tuple(map(float, value))
    elif kind == tuple[int, ...]:
        if isinstance(value, list | tuple) and all(type(part) is int for part in value):
            return tuple(value)
    elif typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            return tuple(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{key} is {value!r}; it takes {_name(kind)}")


def _parse(key: str, text: str, types: Mapping[str, Any]) -> Any:
    _expect_known(key, types)
    kind = types[key]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(kind) is tuple:
            one = typing.get_args(kind)[0]
            return tuple(one(part.strip()) for part in text.split(",") if part.strip())
        if typing.get_origin(kind) is dict:
            table = text if text.startswith("{") else f"{{{text}}}"
            return tomllib.loads(f"it = {table}")["it"]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{key} is {text!r}; it takes {_name(kind)}") from None


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        if kind == tuple[int, ...]:
            return "a list of whole numbers"
        return "a list of numbers" if kind == tuple[float, ...] else "a list of names"
    if typing.get_origin(kind) is dict:
        return "a table, such as {margin = 0.1}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # A string, a number or a truth is written in TOML as in JSON.
    return json.dumps(value, ensure_ascii=False)


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value!r}; it must be {rule}")
