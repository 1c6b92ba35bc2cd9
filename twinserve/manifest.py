"""The document inside twin.onnx: all that serving needs to know of a twin.

A twin is an ordinary ONNX model whose `metadata_props["twinserve"]` holds this manifest as JSON.
This module alone reads and writes it, and needs neither onnx nor onnxruntime: a small reader walks
the top level of the protobuf and seeks past the graph, so that a 90 MB file answers in
milliseconds. What it survives: a file that is no ONNX, is cut short, has no manifest, or has one of
a newer major schema; each is refused with a sentence.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import re
import tempfile
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from twinserve import formats
from twinserve.distance import Metric
from twinserve.errors import ManifestError

SCHEMA = formats.MANIFEST
KEY = "twinserve"
TOKENIZER_KEY = "tokenizer.json"
OUTPUT = "embedding"
MAX_BYTES = 2**31 - 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

# Names of the graph's inputs; a text twin lists its own, of these.
IMAGE, TENSOR = "image", "tensor"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# A subject of several items is decided by its nearest one. `nearest_of_5` is calibrated on the
# nearest of five items, `item` on single pairs.
ITEM = "item"
_AGGREGATION = re.compile(r"item|nearest_of_[1-9][0-9]{0,3}")

_OF_A_CALL = ("truncate", "prompts", "default_prompt")

COLOR_ORDERS = {"L": 1, "RGB": 3, "BGR": 3}  # with the channels that each has
RESIZES = ("stretch", "crop", "pad")
RESAMPLES = ("nearest", "box", "bilinear", "bicubic", "lanczos")
DATA_TYPES = ("uint8", "float32", "int64")

# What a file may make this reader hold or walk, far above what any twin needs.
_MAX_ENTRY_BYTES = 1 << 28
_MAX_FIELDS = 100_000
_MAX_DIMENSION = 1 << 16
_MAX_SIDE = 1 << 14

# Field numbers of onnx.ModelProto and onnx.StringStringEntryProto, from onnx.proto3.
_GRAPH, _METADATA_PROPS = 7, 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class ImageInput:
    """Input contract of an image twin: the graph takes uint8 [batch, height, width, channels]."""

    height: int
    width: int
    channels: int
    color_order: str  # L, RGB or BGR
    resize: str = "stretch"  # stretch, crop (shorter side, then centre) or pad (white)
    resample: str = "bilinear"  # nearest, box, bilinear, bicubic or lanczos
    decoder: str = "pillow-1"


@dataclass(frozen=True)
class TextInput:
    """Input contract of a text twin: int64 [batch, length] each, padded at the end; pooled inside.

    The tokenizer itself is an entry of its own in the file. Prompts (texts put before the input)
    and what is done with long texts belong to a call: they do not change the space.
    """

    max_tokens: int  # special tokens included
    truncate: bool = True  # whether a longer text is cut or refused where a call does not say
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""  # name of the prompt used where a call names none; "" uses none
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    pad_id: int = 0
    tokenizer_digest: str = ""  # sha256 of tokenizer.json


@dataclass(frozen=True)
class TensorInput:
    """Input contract of a tensor twin: [batch, *shape] of one element type."""

    shape: tuple[int, ...]
    data_type: str = "float32"  # uint8, float32 or int64


InputContract = ImageInput | TextInput | TensorInput
_CONTRACTS: dict[str, type[Any]] = {"image": ImageInput, "text": TextInput, "tensor": TensorInput}


@dataclass(frozen=True)
class OperatingPoint:
    """A rate with its threshold and the evidence behind it."""

    false_accept_rate: float  # measured on the calibrating classes
    false_accept_rate_upper: float  # upper 95 % bound, bootstrap over classes
    threshold: float  # match iff distance <= threshold
    true_accept_rate: float


@dataclass(frozen=True)
class Calibration:
    """What the distances of one (precision, dimension, aggregation) mean.

    `points` fall in rate and are dense, so that a rule for any rate finds the point at or below
    it; `default_far` names the one used when a request has no rule. The likelihood ratio of a
    distance d is llr = intercept - slope * d, natural log.
    """

    precision: str
    dimension: int
    aggregation: str  # item, or nearest_of_N: the distance to the nearest of a subject's N items
    metric: Metric
    points: tuple[OperatingPoint, ...]
    default_far: float
    slope: float
    intercept: float
    equal_error_rate: float
    classes: int
    genuine_pairs: int
    impostor_pairs: int
    data_digest: str = ""
    evidence: str = "run"  # run: the run's calibrate part; labels or pairs: the user's own


@dataclass(frozen=True)
class Manifest:
    """One twin, as written in its file."""

    name: str
    version: str
    modality: str  # image, text or tensor
    input: InputContract
    dimension: int
    normalized: bool
    metric: Metric
    space_id: str
    graph_digest: str  # sha256 of the graph's bytes in this file
    precision: str = "fp32"
    truncations: tuple[int, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)  # the gate's report
    training: dict[str, Any] = field(default_factory=dict)  # data digest, loss, mining, results
    origin: dict[str, Any] = field(default_factory=dict)  # of a model made elsewhere: digests
    schema: str = f"{SCHEMA[0]}.{SCHEMA[1]}"

    def calibration(self, dimension: int, aggregation: str = "item") -> Calibration | None:
        """Return what is known of distances in this precision at `dimension`, or None."""
        for entry in self.calibrations:
            if (entry.precision, entry.dimension, entry.aggregation) == (
                self.precision,
                dimension,
                aggregation,
            ):
                return entry
        return None

    def to_json(self) -> str:
        """Return the document; equal manifests give equal bytes."""
        return json.dumps(
            dataclasses.asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False
        )

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read the document, checking the type and range of every field, so that all else may
        trust it.

        Unknown keys are passed over, so that a newer minor schema still opens.

        Raises:
            ManifestError: not JSON, a newer major schema, or a missing or wrong field.
        """
        try:
            raw = json.loads(text)
            # Python reads NaN, 1e999 and half surrogate pairs, none of which could be passed on.
            json.dumps(raw, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ManifestError(
                f"the manifest is damaged: it is not JSON ({error}); export again"
            ) from error
        if not isinstance(raw, dict):
            _damaged("the document", "is not an object")
        _check_schema(raw.get("schema"))
        kind = _CONTRACTS.get(_decoded(str, raw.get("modality"), "modality"))
        if kind is None:
            _damaged("modality", f"is {raw['modality']!r}, not one of {', '.join(_CONTRACTS)}")
        contract = _decoded(kind, raw.get("input"), "input")
        manifest: Manifest = _decoded(Manifest, {**raw, "input": contract}, "")
        _check_ranges(manifest)
        return manifest


def space_id(weights_digest: str, contract: InputContract, dimension: int, normalized: bool) -> str:
    """Name the space in which embeddings are comparable.

    Args:
        weights_digest: sha256 of the fp32 source weights, the same for every precision.
        contract: how raw input reaches the graph, decoder and resampler included.
        dimension: after truncation; each truncated dimension is a space of its own.
        normalized: whether the embeddings have unit length.
    """
    given = dataclasses.asdict(contract)
    for key in _OF_A_CALL:
        given.pop(key, None)
    document = {
        "weights": weights_digest,
        "input": given,
        "dimension": dimension,
        "normalized": normalized,
    }
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    return "sp_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def truncated_space_id(full: str, dimension: int) -> str:
    """Name the space of the first `dimension` coordinates, renormalised, of space `full`."""
    return "sp_" + hashlib.sha256(f"{full}/{dimension}".encode()).hexdigest()[:32]


def read(path: Path | str) -> Manifest:
    """Read the manifest of a twin file.

    Raises:
        ManifestError: see the module's first lines.
        FileNotFoundError: no such file.
    """
    text = _property(path, KEY)
    if text is None:
        raise ManifestError(
            f"{path} is an ONNX file without a twinserve manifest; "
            "make a twin of it with `twinserve import`"
        )
    return Manifest.from_json(text)


def read_tokenizer(path: Path | str) -> str | None:
    """Return a text twin's tokenizer.json, or None where the file holds none."""
    return _property(path, TOKENIZER_KEY)


def read_graph_digest(path: Path | str) -> str:
    """Return the sha256 of the graph's bytes as they are, to compare with the manifest's."""
    with _opened(path) as file:
        return _graph_digest(file, path)


def digest_of_graph(model: bytes) -> str:
    """Return the sha256 of the graph's bytes inside a serialised model."""
    return _graph_digest(io.BytesIO(model), "the model")


def attach(model: bytes, manifest: Manifest, tokenizer: str | None = None) -> bytes:
    """Return a serialised ONNX model with this manifest in it, replacing any it had.

    Entries of a protobuf's repeated field may stand anywhere, so the others are kept byte for byte
    and ours are appended: equal inputs give equal bytes.

    Raises:
        ManifestError: not an ONNX model, a manifest that could not be read back, or above 2 GB.
    """
    text = manifest.to_json()
    Manifest.from_json(text)  # what cannot be read is not written
    kept = bytearray()
    end_of_last = 0
    for number, start, length in _fields(io.BytesIO(model), "the model"):
        ours = number == _METADATA_PROPS and _entry_key(model[start : start + length]) in (
            KEY,
            TOKENIZER_KEY,
        )
        if not ours:
            kept += model[end_of_last : start + length]
        end_of_last = start + length
    entries = [(KEY, text)]
    if tokenizer is not None:
        entries.append((TOKENIZER_KEY, tokenizer))
    for key, value in entries:
        body = _delimited(1, key.encode()) + _delimited(2, value.encode())
        kept += _delimited(_METADATA_PROPS, body)
    if len(kept) > MAX_BYTES:
        raise ManifestError(
            f"the twin would be {len(kept)} bytes, above the 2 GB that one ONNX file can hold; "
            "use a smaller encoder or a lower precision"
        )
    return bytes(kept)


def write_atomically(path: Path | str, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a half."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _damaged(where: str, what: str) -> NoReturn:
    # A value may be megabytes long, and is somebody else's.
    raise ManifestError(f"the manifest is damaged: {where:.200} {what:.500}; export again")


def _check_schema(schema: object) -> None:
    match = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})", schema) if isinstance(schema, str) else None
    if match is None:
        _damaged("schema", f"is {schema!r}, not a version such as {SCHEMA[0]}.{SCHEMA[1]}")
    if int(match[1]) > SCHEMA[0]:
        raise ManifestError(
            f"the manifest has schema {schema}, this twinserve reads up to {SCHEMA[0]}.x; "
            "upgrade twinserve or export with an older one"
        )
    if int(match[1]) < 1:
        _damaged("schema", f"is {schema}, and there was none before 1.0")


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decoded(kind: Any, raw: Any, where: str) -> Any:
    """Bring a JSON value to the type of its field, refusing every other.

    Knows the types that the dataclasses above use: bool, int, float, str, enums, dataclasses,
    tuple[X, ...] and dict[str, X].
    """
    if type(raw) is kind:  # most of a manifest is plain numbers, and they are thousands
        return raw
    origin = typing.get_origin(kind)
    if kind is Any or (origin is types.UnionType and dataclasses.is_dataclass(raw)):
        return raw
    if kind is Metric:
        if raw not in tuple(Metric):
            _damaged(where, f"is {raw!r}, not one of {', '.join(Metric)}")
        return Metric(raw)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(raw, dict):
            _damaged(where, f"is {raw!r:.60}, not an object")
        known = {}
        for entry in dataclasses.fields(kind):
            path = f"{where}.{entry.name}".lstrip(".")
            if entry.name in raw:
                known[entry.name] = _decoded(_hints(kind)[entry.name], raw[entry.name], path)
            elif (
                entry.default is dataclasses.MISSING
                and entry.default_factory is dataclasses.MISSING
            ):
                _damaged(path, "is missing")
        return kind(**known)
    if origin is tuple:
        if not isinstance(raw, list):
            _damaged(where, f"is {raw!r:.60}, not a list")
        inner = typing.get_args(kind)[0]
        return tuple(_decoded(inner, entry, f"{where}[{i}]") for i, entry in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, dict):
            _damaged(where, f"is {raw!r:.60}, not an object")
        inner = typing.get_args(kind)[1]
        return {key: _decoded(inner, entry, f"{where}.{key}") for key, entry in raw.items()}
    if kind is float and type(raw) is int and abs(raw) <= 2**53:
        return float(raw)
    if type(raw) is not kind:
        _damaged(where, f"is {raw!r:.60}, not of type {kind.__name__}")
    return raw


def _check_ranges(manifest: Manifest) -> None:
    for name in ("name", "version", "space_id"):
        if not NAME.fullmatch(getattr(manifest, name)):
            _damaged(
                name,
                f"is {getattr(manifest, name)!r:.60}; it may hold letters, digits, "
                "'.', '_' and '-', up to 128 of them",
            )
    _between("dimension", manifest.dimension, 1, _MAX_DIMENSION)
    for index, truncation in enumerate(manifest.truncations):
        _between(f"truncations[{index}]", truncation, 1, manifest.dimension)
    _check_contract(manifest.input)
    for index, calibration in enumerate(manifest.calibrations):
        where = f"calibrations[{index}]"
        if calibration.dimension not in (manifest.dimension, *manifest.truncations):
            _damaged(
                f"{where}.dimension",
                f"is {calibration.dimension}, neither the twin's {manifest.dimension} "
                "nor a truncation",
            )
        if not _AGGREGATION.fullmatch(calibration.aggregation):
            _damaged(
                f"{where}.aggregation",
                f"is {calibration.aggregation!r:.60}, neither item nor nearest_of_N",
            )
        _check_calibration(calibration, where)


def _check_contract(contract: InputContract) -> None:
    if isinstance(contract, ImageInput):
        _between("input.height", contract.height, 1, _MAX_SIDE)
        _between("input.width", contract.width, 1, _MAX_SIDE)
        _one_of("input.color_order", contract.color_order, tuple(COLOR_ORDERS))
        _one_of("input.resize", contract.resize, RESIZES)
        _one_of("input.resample", contract.resample, RESAMPLES)
        channels = COLOR_ORDERS[contract.color_order]
        _between("input.channels", contract.channels, channels, channels)
    elif isinstance(contract, TextInput):
        _between("input.max_tokens", contract.max_tokens, 1, 1 << 20)
        if contract.inputs[:1] != TEXT_INPUTS[:1]:
            _damaged("input.inputs", f"is {list(contract.inputs)}, which lacks {TEXT_INPUTS[0]}")
        for name in contract.inputs:
            _one_of("input.inputs", name, TEXT_INPUTS)
        _between("input.pad_id", contract.pad_id, 0, 1 << 31)
        if contract.default_prompt and contract.default_prompt not in contract.prompts:
            _damaged(
                "input.default_prompt",
                f"is {contract.default_prompt!r:.60}, which is none of the prompts",
            )
    else:
        _one_of("input.data_type", contract.data_type, DATA_TYPES)
        if not contract.shape or math.prod(contract.shape) > 1 << 30:
            _damaged("input.shape", f"is {list(contract.shape)}: empty, or above 2^30 elements")
        for index, side in enumerate(contract.shape):
            _between(f"input.shape[{index}]", side, 1, 1 << 30)


def _check_calibration(calibration: Calibration, where: str) -> None:
    for name in ("default_far", "equal_error_rate"):
        _between(f"{where}.{name}", getattr(calibration, name), 0.0, 1.0)
    if not 0.0 < calibration.default_far < 1.0:
        _damaged(f"{where}.default_far", f"is {calibration.default_far}, not between 0 and 1")
    if calibration.slope < 0.0:
        _damaged(f"{where}.slope", f"is {calibration.slope}: a larger distance cannot be likelier")
    for name in ("classes", "genuine_pairs", "impostor_pairs"):
        _between(f"{where}.{name}", getattr(calibration, name), 0, 1 << 62)
    previous: OperatingPoint | None = None
    for index, point in enumerate(calibration.points):
        place = f"{where}.points[{index}]"
        for name in ("false_accept_rate", "false_accept_rate_upper", "true_accept_rate"):
            _between(f"{place}.{name}", getattr(point, name), 0.0, 1.0)
        if point.threshold < 0.0:
            _damaged(f"{place}.threshold", f"is {point.threshold}, below 0")
        if point.false_accept_rate_upper < point.false_accept_rate:
            _damaged(f"{place}.false_accept_rate_upper", "lies below the rate that it bounds")
        if previous is not None and (
            point.threshold >= previous.threshold
            or point.false_accept_rate > previous.false_accept_rate
        ):
            _damaged(place, "is out of order: rates and thresholds fall")
        previous = point


def _between(where: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        limits = f"{least}" if least == most else f"{least} to {most}"
        _damaged(where, f"is {value}, not {limits}")


def _one_of(where: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        _damaged(where, f"is {value!r:.60}, not one of {', '.join(known)}")


def _opened(path: Path | str) -> BinaryIO:
    try:
        return open(path, "rb")
    except IsADirectoryError as error:
        raise ManifestError(f"{path} is a folder; name the .onnx file in it") from error


def _property(path: Path | str, key: str) -> str | None:
    """Return one entry of metadata_props, reading no other entry's value."""
    found: str | None = None
    with _opened(path) as file:
        for number, start, length in _fields(file, path):
            if number != _METADATA_PROPS:
                continue
            file.seek(start)
            # The key stands first in what every writer makes; 256 bytes show whether it is ours.
            if key.encode() not in file.read(min(length, 256)):
                continue
            if length > _MAX_ENTRY_BYTES:
                raise ManifestError(
                    f"{path} holds an entry of {length} bytes in its metadata, "
                    f"the limit is {_MAX_ENTRY_BYTES}; export again"
                )
            file.seek(start)
            entry = file.read(length)
            if _entry_key(entry) == key:
                found = _entry_text(entry, 2)
    return found


def _graph_digest(file: BinaryIO, name: Path | str) -> str:
    digest = hashlib.sha256()
    for number, start, length in _fields(file, name):
        if number == _GRAPH:
            file.seek(start)
            remaining = length
            while remaining:
                chunk = file.read(min(remaining, 1 << 20))
                if not chunk:
                    raise ManifestError(f"{name} shrank while it was read; copy it again")
                digest.update(chunk)
                remaining -= len(chunk)
    return digest.hexdigest()


def _fields(file: BinaryIO, name: Path | str) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start of content, length of content) of the top-level message."""
    size = file.seek(0, os.SEEK_END)
    not_onnx = ManifestError(
        f"{name} is not an ONNX model, or was cut short; export or copy it again"
    )
    position = count = graphs = 0
    while position < size:
        file.seek(position)
        head = file.read(20)
        try:
            tag, used = _read_varint(head, 0)
            number, wire = tag >> 3, tag & 7
            if wire == _LENGTH:
                length, used = _read_varint(head, used)
            elif wire == _VARINT:
                start = used
                _, used = _read_varint(head, used)
                used, length = start, used - start
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise not_onnx
        except IndexError:
            raise not_onnx from None
        start = position + used
        count += 1
        graphs += number == _GRAPH
        if number == 0 or start + length > size or count > _MAX_FIELDS:
            raise not_onnx
        yield number, start, length
        position = start + length
    # Of two, protobuf would make one that nobody exported.
    if graphs != 1:
        raise not_onnx


def _entry_key(entry: bytes) -> str:
    return _entry_text(entry, 1)


def _entry_text(entry: bytes, wanted: int) -> str:
    """Return field `wanted` (1 key, 2 value) of a StringStringEntryProto."""
    found = b""
    position = 0
    try:
        while position < len(entry):
            tag, position = _read_varint(entry, position)
            length, position = _read_varint(entry, position)
            if tag & 7 != _LENGTH or position + length > len(entry):
                raise IndexError
            if tag >> 3 == wanted:
                found = entry[position : position + length]
            position += length
        return found.decode()
    except (IndexError, UnicodeDecodeError) as error:
        raise ManifestError("the file's metadata is damaged; export or copy it again") from error


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at `position` and the position after it; IndexError when it has no end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise IndexError


def _write_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, content: bytes) -> bytes:
    return _write_varint(number << 3 | _LENGTH) + _write_varint(len(content)) + content
