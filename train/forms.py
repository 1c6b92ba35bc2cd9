"""What a data set is: of pictures, texts or vectors; of labelled items, pairs or triplets.

In: a config. Out: `Kind`, told by the path's suffix, a table's header, and what the config says.
Every table can hold any of the three: texts stand in it, pictures as paths from its folder, and
vectors as rows of the file that `items` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from twinserve.errors import ConfigError, DataError
from twinserve.train.config import FORMS, LOSSES_OF_LINKS, TWINS, TrainConfig
from twinserve.train.tables import Column, header, place_of, records

TABLES = (".csv", ".tsv")
ARRAYS = (".npz", ".npy", ".parquet")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Pictures as well, but of formats that serving does not decode.
OTHER_PICTURES = (".pgm", ".ppm", ".pbm", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".tga")

# What the columns of a table are usually called, the likeliest first.
TEXT_NAMES = ("text", "sentence", "question", "query")
PATH_NAMES = ("image", "picture", "photo", "path", "file", "filename")
ROW_NAMES = ("row", "id")
LABEL_NAMES = ("label", "category", "class", "intent", "subject")
JUDGEMENT_NAMES = ("same", "score", "is_duplicate", "similarity", "label")
_ITEM_NAMES = {"text": TEXT_NAMES, "image": PATH_NAMES, "tensor": ROW_NAMES}
_EVERY_NAME = (*TEXT_NAMES, *PATH_NAMES, *ROW_NAMES)
FIRST_NAMES = ("first", *(f"{name}1" for name in _EVERY_NAME))
SECOND_NAMES = ("second", *(f"{name}2" for name in _EVERY_NAME))
TRIPLET_NAMES = ("anchor", "positive", "negative")
_LINKED = {
    "pairs": (FIRST_NAMES, SECOND_NAMES, JUDGEMENT_NAMES),
    "triplets": tuple((name,) for name in TRIPLET_NAMES),
}
_PLURALS = {"image": "pictures", "text": "texts", "tensor": "vectors"}


@dataclass(frozen=True)
class Kind:
    """What a data set holds."""

    modality: str  # image, text or tensor
    form: str  # labelled, pairs or triplets
    table: bool  # its items stand in a CSV, or are named there


def kind_of(config: TrainConfig) -> Kind:
    """Tell what a config's data is.

    Raises:
        ConfigError: settings that do not fit such data.
        DataError: a table that cannot be read.
    """
    path = Path(config.data)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in TABLES:
        if config.form not in ("", "labelled"):
            raise ConfigError(
                f"form is {config.form!r} and {path} is no table; write {config.form} as a CSV "
                "whose cells are texts, paths of pictures, or rows of the vectors in `items`"
            )
        arrays = suffix in ARRAYS and not path.is_dir()
        _refuse_unused(config, suffix if arrays else "")
        return Kind("tensor" if arrays else "image", FORMS[0], False)
    form = _form(path, config)
    if form != "labelled" and config.train_groups:
        raise ConfigError(
            f"train_groups names groups of classes, and {path} holds {form}, which have none; "
            "name their parts by split_column"
        )
    if form != "labelled" and config.folds:
        raise ConfigError(
            f"folds deal out classes, and {path} holds {form}, which have none; train several "
            "seeds instead, or name the parts by split_column"
        )
    return Kind(_modality(path, config, form), form, True)


def _refuse_unused(config: TrainConfig, suffix: str) -> None:
    """Refuse settings of other data, which would be passed over in silence."""
    for key, needs in (
        ("items", "a CSV"),
        ("labels", ".npy"),
        ("columns", "a CSV or .parquet"),
        ("split_column", "a CSV or .parquet"),
    ):
        if getattr(config, key) and not (suffix and suffix in needs):
            raise ConfigError(
                f"{key} is set, and takes {needs}, which {config.data} is not; unset it, or give "
                "such data"
            )


def check_twin(kind: Kind, config: TrainConfig) -> None:
    """Refuse a twin that does not take such data.

    Raises:
        ConfigError: it does not.
    """
    if kind.modality != config.modality:
        raise ConfigError(
            f"twin is {config.twin!r}, which does not take the "
            f"{_PLURALS[kind.modality]} of {config.data}; set "
            f"{' or '.join(f'twin={twin}' for twin in TWINS[kind.modality])}, or give other data"
        )


def check_loss(kind: Kind, config: TrainConfig) -> None:
    """Refuse a loss that does not take such data, and settings that only classes heed.

    Raises:
        ConfigError: it does not.
    """
    if kind.form == "labelled":
        return
    takes = LOSSES_OF_LINKS[kind.form]
    if config.loss not in takes:
        raise ConfigError(
            f"loss is {config.loss!r}, which takes items with classes, and {config.data} holds "
            f"{kind.form}; set {_advised(kind, config)} ({kind.form} are taken by "
            f"{', '.join(takes)})"
        )
    if config.mining != "random":
        raise ConfigError(
            f"mining is {config.mining!r}, which chooses among items with classes, and "
            f"{config.data} holds {kind.form}, which are chosen already; unset it"
        )
    if config.rotations:
        raise ConfigError(
            f"rotations make classes of turned pictures, and {config.data} holds {kind.form}, "
            "which have none; unset it, or set rotate_degrees"
        )


def _advised(kind: Kind, config: TrainConfig) -> str:
    """Return the settings to begin with."""
    if kind.form == "triplets":
        return "loss=triplet"
    if config.score_range:
        return "loss=cosine_mse different_cosine=0"
    return (
        "loss=contrastive, or loss=cosine_mse where they have scores, or loss=multiple_negatives "
        "where all are the same"
    )


def columns_of(kind: Kind, config: TrainConfig) -> list[Column]:
    """Return the columns of a table of this kind: those of its items, and a judgement or label."""
    asked = (*config.columns, "", "", "")
    if kind.form == "labelled":
        usual = _ITEM_NAMES[kind.modality]
        return [
            Column("text_column", config.text_column or asked[0], usual, 0),
            Column("label_column", config.label_column or asked[1], LABEL_NAMES, 1),
        ]
    return [
        Column(f"columns[{place + 1}]", asked[place], names, place)
        for place, names in enumerate(_LINKED[kind.form])
    ]


def _form(path: Path, config: TrainConfig) -> str:
    if config.form:
        return config.form
    if config.score_range:
        return "pairs"
    names = [cell.lower() for cell in header(path, "items")]
    if not {*TRIPLET_NAMES} - {*names}:
        return "triplets"
    if {*FIRST_NAMES} & {*names} and {*SECOND_NAMES} & {*names}:
        return "pairs"
    if not config.columns and not (config.text_column or config.label_column):
        _refuse_bare_pairs(path, names)
    return "labelled"


def _refuse_bare_pairs(path: Path, first: list[str]) -> None:
    """Refuse three columns without a header that end in numbers: surely pairs with their scores."""
    if len(first) == 3 and all(
        len(cells) == 3 and _number(cells[2]) for _, cells in records(path, "items", 100)
    ):
        raise DataError(
            f"{path} has no header and a number in the last of three columns, as pairs with their "
            "judgements have; set form=pairs, and score_range=0..5 (say) unless they are 0 or 1. "
            "For labelled items set form=labelled"
        )


def _number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _modality(path: Path, config: TrainConfig, form: str) -> str:
    """Tell what a table's items are: rows of `items`, else pictures where the cells end as such."""
    if config.items:
        return "tensor"
    found = records(path, "items", 50)
    if not found:
        raise DataError(f"{path} holds no lines; write items a line, and their labels")
    first = [cell.strip() for cell in found[0][1]]
    column = columns_of(Kind("text", form, True), config)[0]
    named = {cell.lower() for cell in first}
    if form == "labelled" and not column.asked and not named & {*TEXT_NAMES}:
        column = columns_of(Kind("image", form, True), config)[0]
    place = place_of(path, first, column)
    cells = [cells[place].strip() for _, cells in found if len(cells) > place]
    suffixes = {PurePosixPath(cell).suffix.lower() for cell in cells[1:] or cells}
    return "image" if suffixes and suffixes <= {*PICTURES, *OTHER_PICTURES} else "text"
