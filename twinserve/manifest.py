"""The document inside twin.onnx: all that serving needs to know of a twin.

A twin is an ordinary ONNX model whose `metadata_props["twinserve"]` holds this manifest as JSON.
This module alone reads and writes it, and needs neither onnx nor onnxruntime: a small reader walks
the top level of the protobuf and seeks past the graph, so that a 90 MB file answers in
milliseconds. What it survives: a file that is no ONNX, is cut short, has no manifest, or has one of
a newer major schema; each is refused with a sentence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from twinserve.distance import Metric
from twinserve.errors import ManifestError

SCHEMA = (1, 0)
KEY = "twinserve"
TOKENIZER_KEY = "tokenizer.json"
OUTPUT = "embedding"
MAX_BYTES = 2**31 - 1

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
    """Input contract of a text twin: token ids and mask, [batch, length]; pooled inside."""

    max_tokens: int
    truncate: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")


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
    aggregation: str  # item: distance to one item
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
        """Read the document.

        Unknown keys are passed over, so that a newer minor schema still opens.

        Raises:
            ManifestError: not JSON, a newer major schema, or a missing or wrong field.
        """
        try:
            raw = json.loads(text)
            schema = str(raw["schema"])
            major = int(schema.split(".")[0])
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(
                "the manifest is damaged: it is not JSON with a schema version; export again"
            ) from error
        if major > SCHEMA[0]:
            raise ManifestError(
                f"the manifest has schema {schema}, this twinserve reads up to {SCHEMA[0]}.x; "
                "upgrade twinserve or export with an older one"
            )
        try:
            known = _known(Manifest, raw)
            known["input"] = _build(_CONTRACTS[raw["modality"]], raw["input"])
            known["metric"] = Metric(raw["metric"])
            known["truncations"] = tuple(int(d) for d in raw.get("truncations", ()))
            known["calibrations"] = tuple(
                _calibration(entry) for entry in raw.get("calibrations", ())
            )
            manifest = Manifest(**known)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(
                f"the manifest is damaged: {type(error).__name__} at {error}; export again"
            ) from error
        if not (isinstance(manifest.dimension, int) and manifest.dimension >= 1):
            raise ManifestError(
                f"the manifest is damaged: dimension is {manifest.dimension!r}; export again"
            )
        return manifest


def space_id(weights_digest: str, contract: InputContract, dimension: int, normalized: bool) -> str:
    """Name the space in which embeddings are comparable.

    Args:
        weights_digest: sha256 of the fp32 source weights, the same for every precision.
        contract: how raw input reaches the graph, decoder and resampler included.
        dimension: after truncation; each truncated dimension is a space of its own.
        normalized: whether the embeddings have unit length.
    """
    document = {
        "weights": weights_digest,
        "input": dataclasses.asdict(contract),
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
    return Manifest.from_json(_properties_with_manifest(path)[KEY])


def read_tokenizer(path: Path | str) -> str | None:
    """Return a text twin's tokenizer.json, or None where the file holds none."""
    return _properties_with_manifest(path).get(TOKENIZER_KEY)


def read_graph_digest(path: Path | str) -> str:
    """Return the sha256 of the graph's bytes as they are, to compare with the manifest's."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for number, start, length in _fields(file, os.fstat(file.fileno()).st_size, path):
            if number == _GRAPH:
                file.seek(start)
                remaining = length
                while remaining:
                    chunk = file.read(min(remaining, 1 << 20))
                    digest.update(chunk)
                    remaining -= len(chunk)
    return digest.hexdigest()


def digest_of_graph(model: bytes) -> str:
    """Return the sha256 of the graph's bytes inside a serialised model."""
    with tempfile.SpooledTemporaryFile(max_size=MAX_BYTES) as file:
        file.write(model)
        digest = hashlib.sha256()
        for number, start, length in _fields(file, len(model), "the model"):
            if number == _GRAPH:
                digest.update(model[start : start + length])
    return digest.hexdigest()


def attach(model: bytes, manifest: Manifest, tokenizer: str | None = None) -> bytes:
    """Return a serialised ONNX model with this manifest in it, replacing any it had.

    Entries of a protobuf's repeated field may stand anywhere, so the others are kept byte for byte
    and ours are appended: equal inputs give equal bytes.
    """
    kept = bytearray()
    end_of_last = 0
    with tempfile.SpooledTemporaryFile(max_size=MAX_BYTES) as file:
        file.write(model)
        for number, start, length in _fields(file, len(model), "the model"):
            if number != _METADATA_PROPS or _entry(model[start : start + length])[0] not in (
                KEY,
                TOKENIZER_KEY,
            ):
                kept += model[end_of_last : start + length]
            end_of_last = start + length
    entries = [(KEY, manifest.to_json())]
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


def _known(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(kind)}
    return {key: value for key, value in raw.items() if key in names}


def _build(kind: type[Any], raw: dict[str, Any]) -> Any:
    known = _known(kind, raw)
    for key, value in known.items():
        if isinstance(value, list):
            known[key] = tuple(value)
    return kind(**known)


def _calibration(raw: dict[str, Any]) -> Calibration:
    known = _known(Calibration, raw)
    known["metric"] = Metric(raw["metric"])
    known["points"] = tuple(_build(OperatingPoint, point) for point in raw["points"])
    return Calibration(**known)


def _properties_with_manifest(path: Path | str) -> dict[str, str]:
    properties: dict[str, str] = {}
    with open(path, "rb") as file:
        for number, start, length in _fields(file, os.fstat(file.fileno()).st_size, path):
            if number == _METADATA_PROPS:
                file.seek(start)
                key, value = _entry(file.read(length))
                properties[key] = value
    if KEY not in properties:
        raise ManifestError(
            f"{path} is an ONNX file without a twinserve manifest; "
            "make a twin of it with `twinserve import`"
        )
    return properties


def _fields(
    file: BinaryIO | tempfile.SpooledTemporaryFile[bytes], size: int, name: Path | str
) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start of content, length of content) of the top-level message."""
    not_onnx = ManifestError(
        f"{name} is not an ONNX model, or was cut short; export or copy it again"
    )
    position = 0
    seen_graph = False
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
        if number == 0 or start + length > size:
            raise not_onnx
        seen_graph = seen_graph or number == _GRAPH
        yield number, start, length
        position = start + length
    if not seen_graph:
        raise not_onnx


def _entry(data: bytes) -> tuple[str, str]:
    values = {1: "", 2: ""}
    position = 0
    try:
        while position < len(data):
            tag, position = _read_varint(data, position)
            length, position = _read_varint(data, position)
            values[tag >> 3] = data[position : position + length].decode()
            position += length
    except (IndexError, UnicodeDecodeError) as error:
        raise ManifestError("the file's metadata is damaged; export or copy it again") from error
    return values[1], values[2]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7


def _write_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, content: bytes) -> bytes:
    return _write_varint(number << 3 | _LENGTH) + _write_varint(len(content)) + content
