"""What a training works on: the data, its split, and the input contract they fix.

In: a config. Out: `Material` of labelled items or `LinkMaterial` of pairs and triplets, the same
for pictures, vectors and texts. The contract of pictures is the config's, that of vectors their
shape, and that of texts holds a tokenizer, which is made from the training part's texts alone: what
calibrates and reports must be as new to it as to the twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinserve.errors import ConfigError, DataError
from twinserve.feed import Rows
from twinserve.manifest import ImageInput, InputContract, TensorInput, TextInput
from twinserve.preprocess import DECODER
from twinserve.tokens import Tokenizer
from twinserve.train import vocabulary
from twinserve.train.components import LinkSplits, split_links
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled, Splits, split
from twinserve.train.faults import Faults
from twinserve.train.forms import Kind, check_twin, columns_of, kind_of
from twinserve.train.labels import classes, label_of
from twinserve.train.links import Links, identities, read_items, read_links
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.readers import Texts, load_image_table, load_images, read_texts
from twinserve.train.tables import read_table
from twinserve.train.vectors import VectorColumns, load_vectors, rows_named


@dataclass(frozen=True)
class Material:
    """A data set of labelled items, ready to train on."""

    labelled: Labelled
    splits: Splits
    contract: InputContract
    tokenizer: str | None = None  # of texts

    @property
    def digest(self) -> str:
        """Of the whole data set."""
        return self.labelled.digest


@dataclass(frozen=True)
class LinkMaterial:
    """A data set of pairs or triplets, ready to train on."""

    data: PairData | TripletData
    splits: LinkSplits
    contract: InputContract
    tokenizer: str | None = None  # of texts

    @property
    def digest(self) -> str:
        """Of the whole data set."""
        return self.data.digest


def prepare(config: TrainConfig, faults: Faults | None = None) -> Material:
    """Read a config's labelled items, split them, and settle the contract.

    Args:
        config: names the data.
        faults: learns of what was left out, up to the config's limits.

    Raises:
        ConfigError: a twin that does not take this kind of data, or pairs and triplets, which
            `prepare_links` takes.
        DataError: data that cannot be read or split.
    """
    return settle(read_labelled(config, faults), config)


def prepare_links(config: TrainConfig, faults: Faults | None = None) -> LinkMaterial:
    """Read a config's pairs or triplets, split them by what hangs together, settle the contract.

    Equal items count as one in the split, whatever they are called: texts that differ in case or
    blanks alone, pictures of the same pixels, equal vectors.

    Args:
        config: names the data.
        faults: learns of what was left out, up to the config's limits.

    Raises:
        ConfigError: a twin that does not take this kind of data, or labelled items, which `prepare`
            takes.
        DataError: data that cannot be read or split.
    """
    return settle_links(read_linked(config, faults), config)


def read_labelled(config: TrainConfig, faults: Faults | None = None) -> Texts | Labelled:
    """Read a config's labelled items: texts as they are written, for all else the rows.

    Args:
        config: names the data.
        faults: takes items that cannot be used; None raises at the first.

    Raises:
        ConfigError, DataError: as `prepare`.
    """
    kind = _kind(config, "labelled")
    if kind.modality == "text":
        return _texts(config, faults)
    if kind.modality == "tensor":
        return _vectors(kind, config, None, faults)
    return _pictures(kind, config, image_contract(config), faults)


def settle(read: Texts | Labelled, config: TrainConfig) -> Material:
    """Split what was read, and settle the contract.

    Raises:
        DataError: data that cannot be split, or a text that the tokenizer cannot take.
    """
    splits = split(read, config)
    if isinstance(read, Texts):
        contract, tokenizer = _text_input(read.of_classes(splits.train), config)
        labelled = read.encoded(Tokenizer(tokenizer, contract))
        return Material(labelled, splits, contract, tokenizer)
    if config.modality == "tensor":
        return Material(read, splits, _tensor_contract(read.rows))
    return Material(read, splits, image_contract(config))


def read_linked(config: TrainConfig, faults: Faults | None = None) -> tuple[Links, Rows | None]:
    """Read a config's pairs or triplets, with the rows of their items; of texts, without.

    Args:
        config: names the data.
        faults: takes lines and items that cannot be used; None raises at the first.

    Raises:
        ConfigError, DataError: as `prepare_links`.
    """
    kind = _kind(config, "pairs", "triplets")
    links = read_links(kind, config, faults)
    if kind.modality == "text":
        return links, None
    asked = image_contract(config) if kind.modality == "image" else TensorInput(())
    rows, there = read_items(links, asked, None, config, faults)
    links = links.without(there)
    if not len(links):
        raise DataError(f"no line of {config.data} has items that can all be read; mend them")
    return links, rows


def settle_links(read: tuple[Links, Rows | None], config: TrainConfig) -> LinkMaterial:
    """Split what was read, and settle the contract.

    Raises:
        DataError: data that cannot be split, or a text that the tokenizer cannot take.
    """
    links, rows = read
    same = identities(links.names, rows)
    splits = split_links(same[links.members], len(links.names), config, links.parts, links.form)
    if rows is None:
        chosen = np.unique(links.members[splits.train])
        texts = tuple(links.names[item] for item in chosen.tolist())
        contract, tokenizer = _text_input(texts, config)
        cut, _ = read_items(links, contract, Tokenizer(tokenizer, contract), config)
        return LinkMaterial(links.data(cut), splits, contract, tokenizer)
    if config.modality == "tensor":
        return LinkMaterial(links.data(rows), splits, _tensor_contract(rows))
    return LinkMaterial(links.data(rows), splits, image_contract(config))


def read_again(config: TrainConfig, contract: InputContract, tokenizer: str | None) -> Labelled:
    """Read the labelled items of a finished training as its twin takes them.

    Raises:
        DataError: data that cannot be read any more.
    """
    kind = _kind(config, "labelled")
    if isinstance(contract, TextInput):
        assert tokenizer is not None
        return _texts(config, None).encoded(Tokenizer(tokenizer, contract))
    if isinstance(contract, TensorInput):
        return _vectors(kind, config, contract, None)
    return _pictures(kind, config, contract, None)


def read_links_again(
    config: TrainConfig, contract: InputContract, tokenizer: str | None
) -> PairData | TripletData:
    """Read the pairs or triplets of a finished training as its twin takes them.

    Raises:
        DataError: data that cannot be read any more.
    """
    links = read_links(_kind(config, "pairs", "triplets"), config)
    cut = None if tokenizer is None else Tokenizer(tokenizer, contract)  # type: ignore[arg-type]
    rows, there = read_items(links, contract, cut, config)
    return links.without(there).data(rows)


def _kind(config: TrainConfig, *forms: str) -> Kind:
    kind = kind_of(config)
    check_twin(kind, config)
    if kind.form not in forms:
        raise ConfigError(
            f"{config.data} holds {_SPOKEN[kind.form]}, and this takes "
            f"{' or '.join(_SPOKEN[form] for form in forms)}; set form if that was told wrongly"
        )
    return kind


_SPOKEN = {"labelled": "labelled items", "pairs": "pairs", "triplets": "triplets"}


def _texts(config: TrainConfig, faults: Faults | None) -> Texts:
    text, label = columns_of(Kind("text", "labelled", True), config)
    return read_texts(
        config.data,
        text_column=text.asked,
        label_column=label.asked,
        split_column=config.split_column,
        faults=faults,
    )


def _pictures(
    kind: Kind, config: TrainConfig, contract: ImageInput, faults: Faults | None
) -> Labelled:
    if not kind.table:
        return load_images(config.data, contract, config.max_broken_images, faults)
    return load_image_table(
        config.data,
        contract,
        columns_of(kind, config),
        split_column=config.split_column,
        max_broken_images=config.max_broken_images,
        faults=faults,
    )


def _vectors(
    kind: Kind, config: TrainConfig, contract: TensorInput | None, faults: Faults | None
) -> Labelled:
    item, label = columns_of(kind, config)
    if not kind.table:
        columns = VectorColumns(config.labels, item.asked, label.asked, config.split_column)
        return load_vectors(config.data, contract, columns, faults)
    faults = faults or Faults()
    holds = "a row or id of a vector and its label"
    lines = read_table(Path(config.data), (item, label), holds, faults, config.split_column)
    named = [
        (line, label_of(line.cells[1], f"line {line.number} of {config.data}", faults))
        for line in lines
    ]
    named = [(line, name) for line, name in named if name]
    vectors, there = rows_named(
        config.items, [line.cells[0] for line, _ in named], faults, contract
    )
    named = [one for one, useful in zip(named, there.tolist(), strict=True) if useful]
    class_names, labels = classes([name for _, name in named])
    return Labelled(
        vectors[there],
        labels,
        class_names,
        tuple(line.cells[0] for line, _ in named),
        tuple(line.part for line, _ in named) if config.split_column else (),
    )


def _tensor_contract(rows: Rows | Sequence[np.ndarray]) -> TensorInput:
    return TensorInput(tuple(int(side) for side in rows[0].shape))


def image_contract(config: TrainConfig) -> ImageInput:
    """Return the input contract that a config asks for, of pictures."""
    if config.twin == "image_encoder":
        from twinserve.train.finetuning import picture_input

        return picture_input(config)
    return ImageInput(
        height=config.image_size,
        width=config.image_size,
        channels=config.channels,
        color_order=config.color_order,
        resize=config.resize,
        resample=config.resample,
        decoder=DECODER,
    )


def _text_input(texts: tuple[str, ...], config: TrainConfig) -> tuple[TextInput, str]:
    """Return the contract and tokenizer.json: an encoder's own, or made of the training texts."""
    if config.twin == "text_encoder":
        # Brings torch and transformers, which no other data take.
        from twinserve.train.finetuning import text_input

        return text_input(config, texts)
    if config.weights and not config.is_own:
        vectors = vocabulary.read_word_vectors(config.weights, config.word_dimension)
        tokenizer = vocabulary.whole_words(texts, vectors, config.vocabulary)
    else:
        tokenizer = vocabulary.train_tokenizer(texts, config.vocabulary)
    return vocabulary.contract_for(tokenizer, config.max_tokens), tokenizer
