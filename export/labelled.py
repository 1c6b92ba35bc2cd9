"""The user's labelled data, read as a twin's input contract asks.

In: a folder or zip of pictures or a table of their paths, a table of labelled texts (CSV or
Parquet), or labelled vectors as npz, npy or Parquet. Out: `Labelled`. The readers are those of
training, so that calibration sees what training would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinserve.errors import DataError
from twinserve.manifest import ImageInput, InputContract, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train import readers, vectors
from twinserve.train.data import Labelled
from twinserve.train.forms import ARRAYS, LABEL_NAMES, PATH_NAMES
from twinserve.train.tables import Column, is_table


@dataclass(frozen=True)
class Columns:
    """Of a table of labelled items, by name or number from 1; "" finds them by usual names."""

    text: str = ""
    label: str = ""


def read_labelled(
    path: Path | str,
    contract: InputContract,
    tokenizer: Tokenizer | None = None,
    columns: Columns = Columns(),
) -> Labelled:
    """Read labelled items for a twin.

    Args:
        path: of the kind that the twin's modality has.
        contract: of the twin.
        tokenizer: of a text twin.
        columns: of a CSV.

    Raises:
        DataError: another kind of data than the twin takes, or data that cannot be used.
    """
    path = Path(path)
    suffix, table = path.suffix.lower(), is_table(path)
    if isinstance(contract, ImageInput):
        if suffix in ARRAYS and not table and not path.is_dir():
            raise DataError(
                f"{path} is a {suffix}; this twin takes pictures, so give a folder or a zip with "
                "one folder of pictures per class, or a CSV of their paths and labels"
            )
        if table:
            named = (
                Column("text_column", columns.text, PATH_NAMES, 0),
                Column("label_column", columns.label, LABEL_NAMES, 1),
            )
            try:
                return readers.load_image_table(path, contract, named)
            except DataError as error:
                raise DataError(
                    f"{error.message} (this twin takes pictures: a CSV has their paths and labels)"
                ) from error
        return readers.load_images(path, contract)
    if isinstance(contract, TextInput):
        if not table:
            raise DataError(
                f"{path} is no CSV; this twin takes texts, so give a CSV with the columns text "
                "and label"
            )
        if tokenizer is None:
            raise DataError("a text twin's data needs its tokenizer, and the file holds none")
        return readers.load_texts(
            path, tokenizer, text_column=columns.text, label_column=columns.label
        )
    if suffix not in ARRAYS or path.is_dir():
        raise DataError(
            f"{path} is none of {', '.join(ARRAYS)}; this twin takes vectors, so give an npz with "
            "the arrays vectors and labels, or an npy or Parquet"
        )
    found = vectors.VectorColumns(vector_column=columns.text, label_column=columns.label)
    return vectors.load_vectors(path, contract, found)
