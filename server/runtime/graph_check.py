"""Whether a twin's file is what its manifest says: the graph's digest, its inputs, its tokenizer.

Each check refuses with a sentence that names the file, what was found and what to do. What passes
can be served without a further look at the file.
"""

from __future__ import annotations

from pathlib import Path

from twinserve import manifest as manifests
from twinserve.errors import ManifestError
from twinserve.feed import input_names
from twinserve.manifest import ImageInput, Manifest, TextInput
from twinserve.preprocess import check_contract
from twinserve.server.runtime.buckets import data_type_of
from twinserve.server.runtime.sessions import Session
from twinserve.tokens import Tokenizer

_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}


def checked_manifest(path: Path) -> Manifest:
    """Read the manifest, and hold the file against it.

    Raises:
        ManifestError: not a twin, a damaged one, or pictures decoded otherwise than here.
    """
    manifest = manifests.read(path)
    digest = manifests.read_graph_digest(path)
    if digest != manifest.graph_digest:
        raise ManifestError(
            f"the graph of {path} is not the one its manifest describes (digest {digest[:12]} "
            f"instead of {manifest.graph_digest[:12]}): the file is damaged or was edited; "
            "copy or export it again"
        )
    if isinstance(manifest.input, ImageInput):
        check_contract(manifest.input)
    return manifest


def tokenizer_of(path: Path, manifest: Manifest) -> Tokenizer | None:
    """Read the tokenizer of a text twin; None for others.

    Raises:
        ManifestError: a text twin without one.
    """
    if not isinstance(manifest.input, TextInput):
        return None
    text = manifests.read_tokenizer(path)
    if text is None:
        raise ManifestError(
            f"{path} is a text twin without a tokenizer in it; export or import it again"
        )
    return Tokenizer(text, manifest.input)


def check_graph(session: Session, manifest: Manifest, path: Path) -> None:
    """Compare the graph's inputs and output with the manifest.

    Raises:
        ManifestError: they differ, or an axis that a call decides is fixed.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [o.name for o in outputs] != [manifests.OUTPUT]:
        raise ManifestError(
            f"{path} has outputs {[o.name for o in outputs]}; a twin has one, "
            f"named {manifests.OUTPUT}; export again"
        )
    if outputs[0].type != _ONNX_TYPES["float32"]:
        raise ManifestError(
            f"{path} gives {outputs[0].type}; a twin gives {_ONNX_TYPES['float32']} in every "
            "precision; export again"
        )
    contract = manifest.input
    expected = _ONNX_TYPES[data_type_of(contract)]
    names = input_names(contract)
    found = {i.name: i.type for i in inputs}
    if found != dict.fromkeys(names, expected):
        raise ManifestError(
            f"{path} takes {found}; its manifest says {', '.join(names)} of {expected}; export "
            "again"
        )
    # Axes that a call decides: how many items, and of texts how long.
    dynamic = 2 if isinstance(contract, TextInput) else 1
    for one in inputs:
        for axis, what in zip(one.shape[:dynamic], ("batch", "length"), strict=False):
            if isinstance(axis, int):
                raise ManifestError(
                    f"{path} fixes the {what} of {one.name} at {axis}; export it with a dynamic "
                    f"{what} axis"
                )
