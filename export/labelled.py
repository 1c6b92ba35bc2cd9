"""The user's labelled data, read as a twin's input contract asks.

In: a folder or zip of pictures, a CSV of labelled texts, or an npz of labelled vectors. Out:
`Labelled`. The readers are those of training, so that calibration sees what training would have.
"""

from __future__ import annotations

from pathlib import Path

from twinserve.errors import DataError
from twinserve.manifest import ImageInput, InputContract, TextInput
from twinserve.tokens import Tokenizer
from twinserve.train import readers
from twinserve.train.data import Labelled

_TABLES = (".csv", ".tsv")
_ARRAYS = (".npz",)


def read_labelled(
    path: Path | str, contract: InputContract, tokenizer: Tokenizer | None = None
) -> Labelled:
    """Read labelled items for a twin.

    Args:
        path: of the kind that the twin's modality has.
        contract: of the twin.
        tokenizer: of a text twin.

    Raises:
        DataError: another kind of data than the twin takes, or data that cannot be used.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if isinstance(contract, ImageInput):
        if suffix in (*_TABLES, *_ARRAYS) and not path.is_dir():
            raise DataError(
                f"{path} is a {suffix}; this twin takes pictures, so give a folder or a zip with "
                "one folder of pictures per class"
            )
        return readers.load_images(path, contract)
    if isinstance(contract, TextInput):
        if suffix not in _TABLES or path.is_dir():
            raise DataError(
                f"{path} is no CSV; this twin takes texts, so give a CSV with the columns text "
                "and label"
            )
        if tokenizer is None:
            raise DataError("a text twin's data needs its tokenizer, and the file holds none")
        return readers.load_texts(path, tokenizer)
    if suffix not in _ARRAYS or path.is_dir():
        raise DataError(
            f"{path} is no .npz; this twin takes vectors, so give an npz with the arrays vectors "
            "and labels"
        )
    return readers.load_vectors(path, contract)
