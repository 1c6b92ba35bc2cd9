"""A twin as onnxruntime runs it: the file opened, checked against its manifest, warmed.

The one seam to the runtime. What it hands on is a function from rows to embeddings that may be
called from several threads at a time: onnxruntime shares no prepacked weights between Python
sessions, so there is one session, and `run()` releases the GIL.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime

from twinserve import manifest as manifests
from twinserve.errors import ManifestError, NotBuilt, TwinserveError
from twinserve.manifest import ImageInput, Manifest, TensorInput
from twinserve.preprocess import check_contract
from twinserve.server import providers
from twinserve.server.batcher import Outputs, Rows
from twinserve.server.providers import Device

log = logging.getLogger(__name__)

_ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}


class Runner:
    """One loaded twin.

    Args:
        path: of the twin; onnxruntime opens it from the path, which does not hold the GIL.
        device: to run on; see `providers.choose`.
        threads: of one run.

    Raises:
        ManifestError: not a twin, a graph that does not fit its manifest, or pictures that were
            decoded otherwise than they are here.
        ProviderUnavailable: the device does not run.
    """

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        self.path = path
        self.device = device
        self.manifest = _checked_manifest(path)
        self._session = _session(path, device, threads)
        providers.check(self._session, device)
        self._input = _check_graph(self._session, self.manifest, path)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        contract = self.manifest.input
        if isinstance(contract, ImageInput):
            return (contract.height, contract.width, contract.channels)
        assert isinstance(contract, TensorInput)
        return contract.shape

    @property
    def input_type(self) -> np.dtype[np.generic]:
        """Element type of one row."""
        contract = self.manifest.input
        name = contract.data_type if isinstance(contract, TensorInput) else "uint8"
        return np.dtype(name)

    def run(self, rows: Rows) -> Outputs:
        """Embed rows, each of `input_shape` and `input_type`: float32 [len(rows), dimension]."""
        batch = np.stack(rows)  # [batch, *input_shape]
        outputs: Outputs = self._session.run([manifests.OUTPUT], {self._input: batch})[0]
        return outputs

    def warm(self, max_batch: int) -> None:
        """Run the smallest and the largest batch, so that no caller meets first-run costs.

        Raises:
            ManifestError: the embeddings have another dimension than the manifest says.
        """
        row = np.zeros(self.input_shape, self.input_type)
        for size in sorted({1, max_batch}):
            outputs = self.run([row] * size)
            if outputs.shape != (size, self.manifest.dimension):
                raise ManifestError(
                    f"{self.path} gives embeddings of shape {list(outputs.shape)} for a batch of "
                    f"{size}, its manifest says dimension {self.manifest.dimension}; export again"
                )


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
    if manifest.modality == "text":
        raise NotBuilt(f"{path} is a text twin; this server serves image and tensor twins so far")
    return manifest


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


def _check_graph(session: onnxruntime.InferenceSession, manifest: Manifest, path: Path) -> str:
    """Compare the graph's input and output with the manifest; return the input's name."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [o.name for o in outputs] != [manifests.OUTPUT]:
        raise ManifestError(
            f"{path} has outputs {[o.name for o in outputs]}; a twin has one, "
            f"named {manifests.OUTPUT}; export again"
        )
    contract = manifest.input
    expected = _ONNX_TYPES[contract.data_type if isinstance(contract, TensorInput) else "uint8"]
    if len(inputs) != 1 or inputs[0].type != expected:
        raise ManifestError(
            f"{path} takes {[(i.name, i.type) for i in inputs]}; its manifest says one input of "
            f"{expected}; export again"
        )
    if isinstance(inputs[0].shape[0], int):
        raise ManifestError(
            f"{path} fixes its batch at {inputs[0].shape[0]}; export it with a dynamic batch axis"
        )
    name: str = inputs[0].name
    return name
