"""What would spoil a training, told from its data before any time is lost.

In: a config, or the material that was made of one. Out: `Checked`: facts, and findings that say
what to do. `check` is what every training does, on what it has read anyway; `examine` is what
`twinserve data check` does: it reads on where a training would stop, so that all broken items are
named, and looks at what training does not need (the pictures' own sizes, how many texts are cut).
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from twinserve.errors import DataError
from twinserve.manifest import TextInput
from twinserve.tokens import Tokenizer
from twinserve.train.check_labelled import class_facts, of_labelled
from twinserve.train.check_links import link_facts, of_links
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.faults import Faults
from twinserve.train.findings import Checked, Finding, number, spread
from twinserve.train.forms import OTHER_PICTURES, kind_of
from twinserve.train.material import (
    LinkMaterial,
    Material,
    read_labelled,
    read_linked,
    settle,
    settle_links,
)
from twinserve.train.readers import files, pictures_beside
from twinserve.train.tables import is_table


def check(
    material: Material | LinkMaterial, config: TrainConfig, faults: Faults | None = None
) -> Checked:
    """Check what a training is about to use: its batches, duplicates, labels and evidence.

    Args:
        material: read and split.
        config: of the training.
        faults: met in reading.
    """
    if isinstance(material, LinkMaterial):
        checked = of_links(material, config)
    else:
        checked = of_labelled(material, config)
    facts = {
        "data": config.data,
        "modality": config.modality,
        "form": checked.facts.pop("form"),
        **checked.facts,
    }
    met = [] if faults is None else _of_faults(faults, config)
    return Checked(facts, (*met, *checked.findings))


def examine(config: TrainConfig) -> Checked:
    """Check a data set as a whole: every item that cannot be used, and what `check` looks at.

    Raises:
        ConfigError: a twin that does not take such data, or settings that do not fit them.
        DataError: the path leads nowhere.
    """
    if not Path(config.data).exists():
        raise DataError(f"{config.data} does not exist; give a folder, zip, table or vectors")
    faults = Faults(gather=True)
    facts: dict[str, Any] = {}
    findings: list[Finding] = []
    names: tuple[str, ...] | None = None  # of the pictures that a table names
    try:
        kind = kind_of(config)
        facts |= {"data": config.data, "modality": kind.modality, "form": kind.form}
        if kind.form == "labelled":
            read = read_labelled(config, faults)
            facts |= class_facts(read)
            names = read.names if kind.table and isinstance(read, Labelled) else None
            material: Material | LinkMaterial = settle(read, config)
        else:
            linked = read_linked(config, faults)
            facts |= link_facts(linked[0])
            names = linked[0].names
            material = settle_links(linked, config)
        checked = check(material, config, faults)
        facts |= checked.facts
        findings += checked.findings
        if isinstance(material.contract, TextInput):
            _look_at_texts(material, config, facts, findings)
    except DataError as error:
        # A reader that found nothing to use says less than the faults that it met.
        findings += [*_of_faults(faults, config), Finding("unusable", True, error.message)]
    if config.modality == "image":
        _look_at_files(Path(config.data), names, facts, findings)
    return Checked(facts, tuple(findings))


def _of_faults(faults: Faults, config: TrainConfig) -> list[Finding]:
    found = []
    for kind, count in Counter(fault.kind for fault in faults.found).items():
        own = [fault for fault in faults.found if fault.kind == kind]
        # A sentence of its own needs no list.
        named = count > 1 or own[0].item
        items = tuple(fault.item or fault.message for fault in own) if named else ()
        if kind == "broken_image":
            stops = count > config.max_broken_images
            message = f"{number(count, 'picture')} cannot be decoded, and " + (
                f"max_broken_images is {config.max_broken_images}: mend them, take them out, or "
                f"set max_broken_images={count} to leave so many out"
                if stops
                else f"will be left out (max_broken_images is {config.max_broken_images})"
            )
            found.append(Finding(kind, stops, message, items))
            continue
        more = f" (and {count - 1} more like it)" if count > 1 else ""
        found.append(Finding(kind, True, f"{own[0].message}{more}", items))
    return found


def _look_at_texts(
    material: Material | LinkMaterial,
    config: TrainConfig,
    facts: dict[str, Any],
    findings: list[Finding],
) -> None:
    """Count tokens, and texts that are cut."""
    contract, names = material.contract, _names(material)
    assert isinstance(contract, TextInput)
    assert material.tokenizer is not None
    tokenizer = Tokenizer(material.tokenizer, contract)
    lengths = np.array([tokenizer.encode(name, truncate=True).count for name in names])
    cut = lengths > contract.max_tokens
    facts["tokens"] = {**spread(lengths), "cut": float(cut.mean())}
    if cut.any():
        findings.append(
            Finding(
                "long_texts",
                False,
                f"{int(cut.sum())} of {len(names)} texts ({cut.mean():.1%}) have more than "
                f"max_tokens={contract.max_tokens} tokens, and lose their ends: set "
                f"max_tokens={int(lengths.max())}, or shorten them",
                tuple(names[item] for item in np.flatnonzero(cut).tolist()),
            )
        )


def _names(material: Material | LinkMaterial) -> tuple[str, ...]:
    return material.data.names if isinstance(material, LinkMaterial) else material.labelled.names


def _look_at_files(
    path: Path, names: tuple[str, ...] | None, facts: dict[str, Any], findings: list[Finding]
) -> None:
    """Measure the pictures as they lie on the disk; `names` are those of a table."""
    sizes: list[tuple[int, int]] = []
    pictures: Iterable[tuple[object, bytes | OSError]] = pictures_beside(path, names or ())
    if not is_table(path):
        pictures = files(path) if path.is_dir() or zipfile.is_zipfile(path) else ()
    for _, content in pictures:
        if isinstance(content, bytes):
            try:
                sizes.append(Image.open(io.BytesIO(content)).size)
            except (OSError, ValueError):
                continue  # told already, by its name
    if sizes:
        facts["pictures"] = {
            "widths": spread([width for width, _ in sizes]),
            "heights": spread([height for _, height in sizes]),
            "sizes": len(set(sizes)),
        }
    there = path.rglob("*") if path.is_dir() else ()
    others = Counter(PurePosixPath(str(file)).suffix.lower() for file in there)
    passed = {suffix: others[suffix] for suffix in OTHER_PICTURES if others[suffix]}
    if passed:
        findings.append(
            Finding(
                "other_formats",
                False,
                f"{number(sum(passed.values()), 'picture')} of formats that serving does not "
                f"decode passed over ({', '.join(passed)}): save as PNG what you want to train on",
            )
        )
