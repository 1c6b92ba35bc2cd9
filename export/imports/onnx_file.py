"""A foreign ONNX file: opened with care, and run as it is.

In: a path. Out: what the graph says of its inputs and outputs, and `Original`, which runs the
untouched model in onnxruntime: the truth that an imported twin is held against. Weights that lie
beside the file are taken in, if all of it fits into one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import external_data_helper, helper

from twinserve import manifest as manifests
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.export.session import PROVIDER
from twinserve.train.pretrained.folders import check_size
from twinserve.train.pretrained.settings import Settings

Array = NDArray[Any]
# What an imported graph's gate held it against, for the manifest.
SOURCE = f"the graph as it was, onnxruntime {ort.__version__}"


@dataclass(frozen=True)
class Port:
    """One input or output, as the graph declares it."""

    name: str
    kind: int  # onnx.TensorProto's element type
    shape: tuple[int | str, ...] | None  # "" where an axis is open without a name

    @property
    def type_name(self) -> str:
        """The element type as numpy calls it."""
        return str(helper.tensor_dtype_to_np_dtype(self.kind))

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join(str(axis) or "?" for axis in self.shape)
        return f"{self.name} {self.type_name} [{axes}]"


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A foreign model in memory."""

    model: onnx.ModelProto
    files: tuple[Path, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def batch(self) -> int | None:
        """The batch that the graph fixes, None where it is open."""
        fixed = [port.shape[0] for port in self.inputs if port.shape]
        return next((axis for axis in fixed if isinstance(axis, int)), None)


def open_file(path: Path) -> OnnxFile:
    """Read a foreign model, with the weights that lie beside it.

    Raises:
        DataError: no such file, or weights that are missing or lie outside its folder.
        ManifestError: not ONNX, or above 2 GB.
        ConfigError: it is a twin already.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; give an ONNX file, or a model's folder")
    check_size([path])
    try:
        name = manifests.read(path).name
    except ManifestError:
        # No manifest, as it should be; or no ONNX, which the next line tells.
        manifests.read_graph_digest(path)
    else:
        raise ConfigError(f"{path} is a twin already ({name}); serve it as it is")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ManifestError(
            f"{path} is not an ONNX model that can be read ({error}); copy or export it again"
        ) from error
    beside = _beside(model, path.parent)
    check_size([path, *beside])
    if beside:
        try:
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # a file that is too short, a link, a bad offset
            raise DataError(
                f"the weights beside {path} cannot be read ({str(error)[:200]}); copy them again"
            ) from error
    given = {weight.name for weight in model.graph.initializer}
    return OnnxFile(
        model,
        (path, *beside),
        tuple(_port(value) for value in model.graph.input if value.name not in given),
        tuple(_port(value) for value in model.graph.output),
    )


def check_batch(file: OnnxFile, settings: Settings) -> None:
    """Refuse a graph that fixes its batch, unless it is to be opened.

    Opening is safe because of the gate: the untouched graph runs at its own batch, and the twin
    must give the same vectors in batches of other sizes, or nothing is written.

    Raises:
        ConfigError: naming the batch.
    """
    if file.batch is not None and not settings.open_batch:
        raise ConfigError(
            f"the graph fixes its batch to {file.batch}; export it again with a dynamic batch, or "
            "give --open-batch: the batch is then opened, and the file is written only if batches "
            f"of other sizes give what batches of {file.batch} gave"
        )


def choose_output(file: OnnxFile, settings: Settings, usual: Sequence[str] = ()) -> Port:
    """Return the output to embed with.

    Args:
        file: the model.
        settings: `output` names one.
        usual: names that mean an embedding here, best first.

    Raises:
        ConfigError: several, and none named; or an unknown name.
    """
    named = {port.name: port for port in file.outputs}
    listed = "; ".join(map(str, file.outputs))
    if settings.output is not None:
        if settings.output not in named:
            raise ConfigError(f"the graph has no output {settings.output!r}; it has: {listed}")
        return named[settings.output]
    if len(file.outputs) == 1:
        return file.outputs[0]
    for name in usual:
        if name in named:
            return named[name]
    raise ConfigError(
        f"the graph has {len(file.outputs)} outputs ({listed}), and a twin has one; "
        "name the embedding with --output"
    )


class Original:
    """The untouched model in onnxruntime.

    Args:
        file: the model.
        output: what to fetch.

    Raises:
        DataError: onnxruntime cannot load it.
    """

    def __init__(self, file: OnnxFile, output: Port) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
        content = file.model.SerializeToString(deterministic=True)
        try:
            self._session = ort.InferenceSession(content, options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's own classes share no public base
            raise DataError(
                f"onnxruntime {ort.__version__} cannot load the graph ({str(error)[:300]}); "
                "it could not be served: export it again with operations that onnxruntime has"
            ) from error
        self._output = output
        self._batch = file.batch
        self._types = {port.name: port.type_name for port in file.inputs}

    def run(self, feeds: Mapping[str, Array]) -> NDArray[np.float32]:
        """Run one batch; where the graph fixes its batch, in such batches, the last one filled up.

        Raises:
            DataError: the graph refuses it.
        """
        typed = {name: array.astype(self._types[name]) for name, array in feeds.items()}
        rows = len(next(iter(typed.values())))
        size = self._batch or rows
        found = []
        for start in range(0, rows, size):
            chosen = np.minimum(np.arange(start, start + size), rows - 1)
            batch = {name: array[chosen] for name, array in typed.items()}
            try:
                (output,) = self._session.run([self._output.name], batch)
            except Exception as error:  # see above
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
                raise DataError(
                    f"the graph refuses {shapes} ({str(error)[:300]}); say what it takes with the "
                    "flags, or export it again"
                ) from error
            found.append(np.asarray(output)[: rows - start])
        return np.concatenate(found).astype(np.float32)


def origin_of(file: OnnxFile, output: Port) -> dict[str, Any]:
    """Return what the manifest says of every imported graph."""
    return {
        "made_with": {"onnx": onnx.__version__, "onnxruntime": ort.__version__},
        "producer": f"{file.model.producer_name} {file.model.producer_version}".strip(),
        "output": output.name,
        "batch_opened_from": file.batch,
    }


def graph_digest(graph: bytes) -> str:
    """Return the sha256 that names an imported graph's weights.

    It covers what was put around them too (mean and std, pooling), since all of it shapes the
    space.
    """
    return hashlib.sha256(f"imported {manifests.digest_of_graph(graph)}".encode()).hexdigest()


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    shape: tuple[int | str, ...] | None = None
    if kind.HasField("shape"):
        shape = tuple(
            axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else axis.dim_param
            for axis in kind.shape.dim
        )
    return Port(value.name, kind.elem_type, shape)


def _beside(model: onnx.ModelProto, folder: Path) -> tuple[Path, ...]:
    """Return the files of weights that a model points to.

    Raises:
        DataError: one is missing, or lies outside the folder.
    """
    home = folder.resolve()
    found = set()
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        place = external_data_helper.ExternalDataInfo(tensor).location
        file = folder / place
        if not file.resolve().is_relative_to(home):
            raise DataError(f"the graph takes weights from outside its folder: {place!r}")
        if not file.is_file():
            raise DataError(
                f"the graph's weights lie in {place}, which is missing; copy it beside the graph"
            )
        found.add(file)
    return tuple(sorted(found))
