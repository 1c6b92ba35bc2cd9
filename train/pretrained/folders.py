"""Files of a model's folder, and what every kind of model is asked: metric and truncations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError, ManifestError
from twinserve.manifest import MAX_BYTES
from twinserve.train.pretrained.settings import Answers, Settings

# A module's weights, in the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")


def folder_of(weights: str) -> Path:
    """Return where a model lies: a folder, or a name in the local cache of Hugging Face.

    A folder goes first. Nothing is fetched: what a training begins with should not depend on the
    day, and its machine need not reach the network.

    Args:
        weights: path of a folder, or a name such as sentence-transformers/all-MiniLM-L6-v2.

    Raises:
        ConfigError: neither; says how to download it.
    """
    folder = Path(weights)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(weights, local_files_only=True))
    except HFValidationError as error:
        raise ConfigError(
            f"weights is {weights!r}, which is no folder; name one that sentence-transformers or "
            "transformers saved, with config.json and model.safetensors"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"weights is {weights!r}, which is no folder, and no model of that name is in the "
            f"local cache of Hugging Face; run `hf download {weights}` where there is a network "
            "(HF_HOME says where the cache lies), or name a folder that sentence-transformers or "
            "transformers saved, with config.json and model.safetensors"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file's object; {} where there is no such file.

    Raises:
        DataError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); copy the model again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; copy the model again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """Return the files of torch weights that transformers would read here; [] where none are."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
    for pattern in _SHARDS:
        if shards := sorted(folder.glob(pattern)):
            return shards
    return []


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of each file by its place inside the model's folder."""
    found = {}
    for file in sorted(set(files)):
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found[file.relative_to(folder).as_posix()] = digest
    return found


def check_size(files: Iterable[Path]) -> None:
    """Refuse, before any of it is read, a model that one ONNX file cannot hold.

    Raises:
        ManifestError: above 2 GB.
    """
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        raise ManifestError(
            f"the model's files hold {size} bytes, above the 2 GB ({MAX_BYTES} bytes) that one "
            "ONNX file can hold; use a smaller encoder"
        )


def metric_of(
    similarity: object, settings: Settings, answers: Answers, where: str, *, normalized: bool
) -> Metric:
    """Return the metric that stands for a model's similarity function.

    Args:
        similarity: cosine, dot, euclidean or manhattan, or None where no file says.
        settings: the flag.
        answers: is told.
        where: the file that says.
        normalized: whether embeddings have unit length, where dot and cosine are the same order.

    Raises:
        ConfigError: a similarity that neither metric stands for, and no flag.
    """
    if similarity is None:
        because = "most encoders are compared by angle"
        return answers.guess("metric", settings.metric, Metric.COSINE, because, "--metric")
    known = {"cosine": Metric.COSINE, "euclidean": Metric.EUCLIDEAN}
    if normalized:
        known["dot"] = Metric.COSINE
    if similarity in known:
        stated = known[str(similarity)]
        return answers.read("metric", settings.metric, stated, where, "--metric")
    if settings.metric is None:
        raise ConfigError(
            f"{where} compares by {similarity!r}, which is no metric of twinserve; "
            "give --metric cosine or --metric euclidean if one of them fits"
        )
    return answers.read("metric", settings.metric, settings.metric, where, "--metric")


def unit_length_of(settings: Settings, answers: Answers) -> bool:
    """Return whether embeddings are scaled to unit length, where no file says."""
    return answers.guess(
        "unit length",
        settings.normalize,
        settings.metric != "euclidean",
        "distances by angle do not change by it",
        "--normalize",
    )


def truncations_of(
    stated: object, dimension: int, settings: Settings, answers: Answers, where: str
) -> tuple[int, ...]:
    """Return the smaller dimensions of a Matryoshka model, falling, the whole one left out.

    Raises:
        ConfigError: one that is no whole number between 1 and the dimension.
    """
    listed = tuple(stated) if isinstance(stated, list) else ()
    if listed:
        taken = answers.read("truncations", settings.truncations, listed, where, "--truncations")
    else:
        because = "no file says that it was trained for any"
        taken = answers.guess("truncations", settings.truncations, (), because, "--truncations")
    for value in taken:
        if type(value) is not int or not 1 <= value <= dimension:
            raise ConfigError(
                f"truncation {value!r} is outside 1 to {dimension}, the embedding's dimension; "
                "give --truncations as whole numbers, such as 256,128"
            )
    return tuple(sorted({value for value in taken if value != dimension}, reverse=True))
