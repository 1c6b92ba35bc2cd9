"""The run folder's checkpoint.pt: everything that a twin is and came from, in one file.

It holds the config, the input contract with its tokenizer, the weights, the split, the results and
the digest of the data, and is written whole or not at all, so that a training stopped at any moment
leaves the best twin so far. It loads with `weights_only=True`, and the module of a user's own twin
is imported only where the user asked for it: a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from twinserve.errors import DataError
from twinserve.manifest import ImageInput, InputContract, TensorInput, TextInput, write_atomically
from twinserve.train import own
from twinserve.train.build import build
from twinserve.train.components import LinkSplits
from twinserve.train.config import TrainConfig
from twinserve.train.data import PARTS, Labelled, Splits
from twinserve.train.material import image_contract, read_again, read_links_again
from twinserve.train.pairs import PairData, TripletData
from twinserve.train.twins import Twin

FILE = "checkpoint.pt"
# 2 adds the contract and the tokenizer; in format 1 all is pictures, as the config says. 3 is of
# pairs and triplets alone, whose splits name rows, so that earlier versions open all other runs.
FORMAT = 3
_FORMAT_OF_LABELLED = 2
_CONTRACTS: dict[str, type[InputContract]] = {
    "image": ImageInput,
    "text": TextInput,
    "tensor": TensorInput,
}


@dataclass(frozen=True)
class Run:
    """A training as its folder holds it."""

    folder: Path
    twin: Twin  # in eval mode, on the CPU
    config: TrainConfig
    splits: Splits | LinkSplits  # by class; of pairs and triplets by row
    results: dict[str, Any]
    data_digest: str  # of the whole data set at the contract's size
    step: int  # at which these weights were taken

    def part(self, part: str) -> Labelled:
        """Return one part of the data set: "train", "calibrate" or "report".

        The data set is read again for the first part asked for, and kept.

        Raises:
            DataError: no such part, or the data set is no longer the one that was trained on.
        """
        _check_part(part)
        return self.labelled.of_classes(getattr(self.splits, part))

    def linked_part(self, part: str) -> PairData | TripletData:
        """Return one part of pairs or triplets; see `part`.

        Raises:
            DataError: as `part`.
        """
        _check_part(part)
        return self.linked.of_rows(getattr(self.splits, part))

    @property
    def is_linked(self) -> bool:
        """Whether the twin was trained on pairs or triplets, not on labelled items."""
        return isinstance(self.splits, LinkSplits)

    @property
    def classes(self) -> Splits:
        """The splits of labelled items.

        Raises:
            DataError: the twin was trained on pairs or triplets.
        """
        if not isinstance(self.splits, Splits):
            raise DataError(
                f"the run in {self.folder} was trained on pairs or triplets, which have no classes"
            )
        return self.splits

    @cached_property
    def labelled(self) -> Labelled:
        """The whole data set, read again when it is first asked for, and kept.

        Raises:
            DataError: the data set is no longer the one that was trained on.
            ConfigError: it is of pairs or triplets.
        """
        labelled = read_again(self.config, self.twin.contract, self.twin.tokenizer)
        self._check_digest(labelled.digest)
        return labelled

    @cached_property
    def linked(self) -> PairData | TripletData:
        """The whole data set of pairs or triplets; see `labelled`."""
        linked = read_links_again(self.config, self.twin.contract, self.twin.tokenizer)
        self._check_digest(linked.digest)
        return linked

    def _check_digest(self, found: str) -> None:
        if found != self.data_digest:
            raise DataError(
                f"{self.config.data} has changed since the run in {self.folder} was trained "
                f"(digest {found[:12]}, was {self.data_digest[:12]}); "
                "bring the data back, or train again"
            )


def _check_part(part: str) -> None:
    if part not in PARTS:
        raise DataError(f"there is no part {part!r}; parts are {', '.join(PARTS)}")


def save(
    folder: Path | str,
    *,
    twin: Twin,
    config: TrainConfig,
    splits: Splits | LinkSplits,
    results: dict[str, Any],
    data_digest: str,
    step: int,
) -> Path:
    """Write checkpoint.pt, and return its path."""
    path = Path(folder) / FILE
    buffer = io.BytesIO()
    document = {
        "format": FORMAT if isinstance(splits, LinkSplits) else _FORMAT_OF_LABELLED,
        "config": config.to_dict(),
        "modality": config.modality,
        "contract": dataclasses.asdict(twin.contract),
        "tokenizer": twin.tokenizer,
        "blueprint": twin.blueprint,
        "state": {
            name: tensor.detach().cpu().contiguous() for name, tensor in twin.state_dict().items()
        },
        "splits": splits.to_dict(),
        "results": results,
        "data_digest": data_digest,
        "step": step,
    }
    torch.save(document, buffer)
    write_atomically(path, buffer.getvalue())
    return path


def read_document(path: Path, newest: int, what: str) -> dict[str, Any]:
    """Read what `torch.save` wrote, plain data and tensors alone, with its format.

    Args:
        path: of the file.
        newest: format that is known here.
        what: the file is, for messages.

    Raises:
        FileNotFoundError: no such file.
        DataError: a damaged file, another one, or one of a newer format.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is damaged or no {what}; train again") from error
    if not isinstance(document, dict) or "format" not in document:
        raise DataError(f"{path} is no {what} of twinserve; train again")
    if document["format"] > newest:
        raise DataError(
            f"{path} has format {document['format']}, this twinserve reads up to {newest}; "
            "upgrade twinserve"
        )
    return document


def load(folder: Path | str) -> Run:
    """Open a run folder.

    Raises:
        DataError: no checkpoint there, a damaged one, or one of a newer format.
        ConfigError: its twin is code of the user's own, which nobody asked to be imported.
    """
    folder = Path(folder)
    path = folder / FILE
    try:
        document = read_document(path, FORMAT, "checkpoint")
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no {FILE}; give the folder that `twinserve train --out` wrote"
        ) from error
    config = TrainConfig.from_dict(document["config"])
    contract: InputContract
    if document["format"] > 1:
        contract = _CONTRACTS[document["modality"]](**document["contract"])
    else:
        contract = image_contract(config)
    if config.is_own:
        own.refuse_unasked(config.twin)
    twin = build(config, contract, document.get("tokenizer"), document.get("blueprint"))
    try:
        twin.load_state_dict(document["state"])
    except RuntimeError as error:
        raise DataError(
            f"the weights in {path} do not fit the {config.twin} that is built here "
            f"({' '.join(str(error).split())[:200]}); bring back the code that trained it"
        ) from error
    splits: type[Splits | LinkSplits] = LinkSplits if "by" in document["splits"] else Splits
    return Run(
        folder=folder,
        twin=twin.eval(),
        config=config,
        splits=splits.from_dict(document["splits"]),
        results=document["results"],
        data_digest=document["data_digest"],
        step=document["step"],
    )
