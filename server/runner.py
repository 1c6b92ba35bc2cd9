"""A twin as onnxruntime runs it: the file opened, checked against its manifest, warmed.

The one seam to the runtime. What it hands on is a function from rows to embeddings that may be
called from several threads at a time: onnxruntime shares no prepacked weights between Python
sessions, so there is one session, and `run()` releases the GIL. A text twin brings the tokenizer
that its file holds, and no text can reach an id that the graph does not know.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime

from twinserve import manifest as manifests
from twinserve.errors import ManifestError, TwinserveError
from twinserve.feed import Row, Rows, feed, input_names
from twinserve.manifest import ImageInput, InputContract, Manifest, TensorInput, TextInput
from twinserve.preprocess import check_contract
from twinserve.server import providers
from twinserve.server.batcher import Outputs
from twinserve.server.providers import Device
from twinserve.tokens import Tokenizer

log = logging.getLogger(__name__)

_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}
# Tokens of the short texts that a twin is warmed with.
_SHORT = 8


class Runner:
    """One loaded twin.

    Args:
        path: of the twin; onnxruntime opens it from the path, which does not hold the GIL.
        device: to run on; see `providers.choose`.
        threads: of one run.

    Raises:
        ManifestError: not a twin, a graph that does not fit its manifest, a text twin without its
            tokenizer, or pictures that were decoded otherwise than they are here.
        ProviderUnavailable: the device does not run.
    """

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        self.path = path
        self.device = device
        self.manifest = _checked_manifest(path)
        self.tokenizer = _tokenizer(path, self.manifest)
        self._session = _session(path, device, threads)
        providers.check(self._session, device)
        _check_graph(self._session, self.manifest, path)

    def run(self, rows: Rows) -> Outputs:
        """Embed rows prepared for the input contract: float32 [len(rows), dimension]."""
        inputs = feed(rows, self.manifest.input)
        outputs: Outputs = self._session.run([manifests.OUTPUT], inputs)[0]
        return outputs

    def warm(self, max_batch: int, max_tokens: int) -> None:
        """Run the smallest and the largest batches, so that no caller meets first-run costs.

        Args:
            max_batch: most rows of one run.
            max_tokens: most tokens of one run, padding included.

        Raises:
            ManifestError: the embeddings have another dimension than the manifest says, or the
                tokenizer knows ids that the graph does not.
        """
        contract = self.manifest.input
        if self.tokenizer is None or not isinstance(contract, TextInput):
            row = _zeros(contract)
            for size in sorted({1, max_batch}):
                self._check_run([row] * size)
            return
        self._check_ids(self.tokenizer, contract)
        for length in sorted({min(_SHORT, contract.max_tokens), contract.max_tokens}):
            ids = np.full(length, contract.pad_id, np.int64)
            for size in sorted({1, max(1, min(max_batch, max_tokens // length))}):
                self._check_run([ids] * size)

    def _check_run(self, rows: list[Row]) -> None:
        try:
            outputs = self.run(rows)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ManifestError(
                f"{self.path} does not run on a batch of {len(rows)}, shape "
                f"{list(rows[0].shape)} each: {str(error)[:300]}; export again"
            ) from error
        if outputs.shape != (len(rows), self.manifest.dimension):
            raise ManifestError(
                f"{self.path} gives embeddings of shape {list(outputs.shape)} for a batch of "
                f"{len(rows)}, its manifest says dimension {self.manifest.dimension}; export again"
            )

    def _check_ids(self, tokenizer: Tokenizer, contract: TextInput) -> None:
        """Look the largest id up in the graph's table, since a text may hold any."""
        largest = max(tokenizer.largest_id, contract.pad_id)
        try:
            self.run([np.full(min(_SHORT, contract.max_tokens), largest, np.int64)])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ManifestError(
                f"the tokenizer of {self.path} does not fit its graph, which cannot run on the id "
                f"{largest} that it knows ({str(error)[:200]}); import the model with its own "
                "tokenizer"
            ) from error


def _checked_manifest(path: Path) -> Manifest:
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


def _tokenizer(path: Path, manifest: Manifest) -> Tokenizer | None:
    if not isinstance(manifest.input, TextInput):
        return None
    text = manifests.read_tokenizer(path)
    if text is None:
        raise ManifestError(
            f"{path} is a text twin without a tokenizer in it; export or import it again"
        )
    return Tokenizer(text, manifest.input)


def _zeros(contract: InputContract) -> Row:
    if isinstance(contract, ImageInput):
        return np.zeros((contract.height, contract.width, contract.channels), np.uint8)
    assert isinstance(contract, TensorInput)
    return np.zeros(contract.shape, contract.data_type)


def _session(path: Path, device: Device, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool takes a core from gRPC and Python, to gain microseconds.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=[(device.provider, device.options)]
            + ([] if device.provider == providers.CPU else [(providers.CPU, {})]),
            enable_fallback=0,
        )
    except TwinserveError:
        raise
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ManifestError(f"onnxruntime cannot open {path}: {str(error)[:300]}") from error
    session.disable_fallback()
    return session


def _check_graph(session: onnxruntime.InferenceSession, manifest: Manifest, path: Path) -> None:
    """Compare the graph's inputs and output with the manifest."""
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
    kind = {ImageInput: "uint8", TextInput: "int64"}.get(type(contract))
    expected = _ONNX_TYPES[contract.data_type if isinstance(contract, TensorInput) else str(kind)]
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
