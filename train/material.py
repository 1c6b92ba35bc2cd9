"""What a training works on: the labelled data, its split, and the input contract they fix.

In: a config. Out: `Material`, the same for pictures, vectors and texts. The contract of pictures is
the config's, that of vectors their shape, and that of texts holds a tokenizer, which is made from
the training classes' texts alone: what calibrates and reports must be as new to it as to the twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twinserve.errors import ConfigError
from twinserve.manifest import ImageInput, InputContract, TensorInput, TextInput
from twinserve.preprocess import DECODER
from twinserve.tokens import Tokenizer
from twinserve.train import words
from twinserve.train.config import TWINS, TrainConfig
from twinserve.train.data import Labelled, Splits, split
from twinserve.train.readers import load_images, load_texts, load_vectors, read_texts

# By the data's suffix; folders and all else are pictures.
MODALITIES = {".csv": "text", ".tsv": "text", ".npz": "tensor"}


@dataclass(frozen=True)
class Material:
    """A data set, ready to train on."""

    labelled: Labelled
    splits: Splits
    contract: InputContract
    tokenizer: str | None = None  # of texts


def prepare(config: TrainConfig) -> Material:
    """Read a config's data, split it, and settle the contract.

    Raises:
        ConfigError: a twin that does not take this kind of data.
        DataError: data that cannot be read or split.
    """
    modality = "image"
    if not Path(config.data).is_dir():
        modality = MODALITIES.get(Path(config.data).suffix.lower(), modality)
    if modality != config.modality:
        raise ConfigError(
            f"twin is {config.twin!r}, which does not take {config.data}; set "
            f"{' or '.join(f'twin={twin}' for twin in TWINS[modality])}, or give other data"
        )
    if modality == "text":
        texts = read_texts(
            config.data, text_column=config.text_column, label_column=config.label_column
        )
        splits = split(texts, config)
        tokenizer = _tokenizer(texts.of_classes(splits.train), config)
        contract = words.contract_for(tokenizer, config.max_tokens)
        labelled = texts.encoded(Tokenizer(tokenizer, contract))
        return Material(labelled, splits, contract, tokenizer)
    if modality == "tensor":
        labelled = load_vectors(config.data)
        shape = tuple(int(side) for side in labelled.rows[0].shape)
        return Material(labelled, split(labelled, config), TensorInput(shape))
    pixels = image_contract(config)
    labelled = load_images(config.data, pixels, config.max_broken_images)
    return Material(labelled, split(labelled, config), pixels)


def read_again(config: TrainConfig, contract: InputContract, tokenizer: str | None) -> Labelled:
    """Read the data of a finished training as its twin takes it.

    Raises:
        DataError: data that cannot be read any more.
    """
    if isinstance(contract, TextInput):
        assert tokenizer is not None
        return load_texts(
            config.data,
            Tokenizer(tokenizer, contract),
            text_column=config.text_column,
            label_column=config.label_column,
        )
    if isinstance(contract, TensorInput):
        return load_vectors(config.data, contract)
    return load_images(config.data, contract, config.max_broken_images)


def image_contract(config: TrainConfig) -> ImageInput:
    """Return the input contract that a config asks for, of pictures."""
    return ImageInput(
        height=config.image_size,
        width=config.image_size,
        channels=config.channels,
        color_order=config.color_order,
        resize=config.resize,
        resample=config.resample,
        decoder=DECODER,
    )


def _tokenizer(texts: tuple[str, ...], config: TrainConfig) -> str:
    if not config.weights:
        return words.train_tokenizer(texts, config.vocabulary)
    vectors = words.read_word_vectors(config.weights, config.word_dimension)
    return words.whole_words(texts, vectors, config.vocabulary)
