"""Small twins made with onnx alone, so that tests of the server need no training and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from twinserve import manifest as manifests
from twinserve.calibration import calibrate, pair_distances
from twinserve.distance import Metric, unit
from twinserve.manifest import ImageInput, InputContract, Manifest, TensorInput, TextInput
from twinserve.tokens import digest

SIZE = 28
DIMENSION = 16
TRUNCATION = 8
MAX_TOKENS = 16
PROMPTS = {"query": "find the answer to ", "passage": "an answer says "}
WORDS = tuple(f"word{i}" for i in range(200))


def projection(inputs: int, dimension: int = DIMENSION, seed: int = 3) -> NDArray[np.float32]:
    """The weights of the small twins: float32 [inputs, dimension]."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((inputs, dimension)) / np.sqrt(inputs)
    return weights.astype(np.float32)


def small_image_twin(
    name: str = "small",
    version: str = "1",
    metric: Metric = Metric.EUCLIDEAN,
    *,
    calibrated: bool = True,
    seed: int = 3,
    precision: str = "fp32",
) -> bytes:
    """A twin that scales pixels to [0, 1] and projects them: uint8 [batch, 28, 28, 1].

    In another precision than fp32 its weights are rounded to fp16; the space is the same.
    """
    contract = ImageInput(SIZE, SIZE, 1, "L")
    weights = projection(SIZE * SIZE, seed=seed)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 1])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
            numpy_helper.from_array(
                weights if precision == "fp32" else _rounded(weights), "weights"
            ),
        ],
    )
    pixels, labels = classes_of_pixels(60, 8, noise=200)
    examples = (embed_pixels(pixels, seed), labels) if calibrated else None
    return _finish(graph, weights, contract, name, version, metric, examples, precision=precision)


def small_tensor_twin(name: str = "vectors", metric: Metric = Metric.COSINE) -> bytes:
    """A twin that projects float32 [batch, 8]."""
    weights = projection(8, seed=5)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["tensor", "weights"], ["embedding"])],
        "vectors",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return _finish(graph, weights, TensorInput((8,)), name, "1", metric, None)


def text_tokenizer(table: dict[str, int] | None = None) -> str:
    """A tokenizer.json that splits at blanks, and puts [CLS] before a text and [SEP] behind it."""
    words = vocabulary() if table is None else table
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, words[word]) for word in ("[CLS]", "[SEP]")],
    )
    text: str = made.to_str()
    return text


def vocabulary() -> dict[str, int]:
    """The words that the small text twin knows, with their ids."""
    known = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *" ".join(PROMPTS.values()).split(), *WORDS)
    return {word: i for i, word in enumerate(dict.fromkeys(known))}


def text_contract(tokenizer: str, **changed: Any) -> TextInput:
    """The input contract of the small text twin."""
    settings: dict[str, Any] = {"max_tokens": MAX_TOKENS, "prompts": PROMPTS}
    return TextInput(**{**settings, "tokenizer_digest": digest(tokenizer), **changed})


def small_text_twin(
    name: str = "texts",
    version: str = "1",
    metric: Metric = Metric.COSINE,
    *,
    calibrated: bool = True,
    tokenizer: str | None = None,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    rows: int | None = None,
    **contract: Any,
) -> bytes:
    """A twin that looks words up and averages them: int64 [batch, length] each; truncates to 8.

    Args:
        name: in the manifest.
        version: in the manifest.
        metric: of its distances.
        calibrated: whether the manifest holds operating points, full and truncated.
        tokenizer: the one put into the file; None is the fitting one.
        inputs: those that the graph takes.
        rows: of the table; None is one for every word.
        contract: fields of the input contract that differ from the usual.
    """
    tokenizer = text_tokenizer() if tokenizer is None else tokenizer
    table = word_table()[:rows]
    one = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"], axis=0),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["words", "column"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "first"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["embedding"]),
        ],
        "texts",
        [one(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [one("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "first"),
        ],
    )
    texts, labels = classes_of_texts(60, 8)
    return _finish(
        graph,
        table,
        text_contract(tokenizer, inputs=inputs, **contract),
        name,
        version,
        metric,
        (embed_texts(texts), labels) if calibrated else None,
        truncations=(TRUNCATION,),
        tokenizer=tokenizer,
    )


def word_table() -> NDArray[np.float32]:
    """The embedding table of the small text twin: float32 [words, 16]."""
    return projection(len(vocabulary()), seed=9) * np.float32(np.sqrt(len(vocabulary())))


def embed_texts(texts: Sequence[str], prompt: str = "") -> NDArray[np.float32]:
    """What the small text twin gives, in plain Python: float32 [n, 16]."""
    words, table = vocabulary(), word_table()
    means = []
    for text in texts:
        ids = [words.get(word, words["[UNK]"]) for word in (prompt + text).lower().split()]
        ids = [words["[CLS]"], *ids[: MAX_TOKENS - 2], words["[SEP]"]]
        means.append(table[ids].mean(axis=0, dtype=np.float64))
    return np.array(means, np.float32)


def classes_of_texts(
    classes: int, each: int, seed: int = 13
) -> tuple[list[str], NDArray[np.int64]]:
    """Texts of 4 to 12 words, most of them their class's own: [classes * each], int64 labels."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(classes):
        own = generator.choice(WORDS, 5, replace=False)
        for _ in range(each):
            others = generator.choice(WORDS, generator.integers(1, 4))
            drawn = generator.choice(own, generator.integers(3, 10))
            texts.append(" ".join([*drawn, *others]))
    return texts, np.repeat(np.arange(classes), each)


def _rounded(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return weights.astype(np.float16).astype(np.float32)


def embed_pixels(pixels: NDArray[np.uint8], seed: int = 3) -> NDArray[np.float32]:
    """What the small image twin gives, in numpy: uint8 [n, 28, 28, 1] -> float32 [n, 16]."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) * np.float32(1 / 255)
    return flat @ projection(SIZE * SIZE, seed=seed)


def classes_of_pixels(
    classes: int, each: int, seed: int = 11, noise: int = 40
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy copies of random pictures: uint8 [classes * each, 28, 28, 1], int64 labels."""
    generator = np.random.default_rng(seed)
    means = generator.integers(0, 256, (classes, 1, SIZE, SIZE, 1))
    drawn = means + generator.integers(-noise, noise + 1, (classes, each, SIZE, SIZE, 1))
    pixels = np.clip(drawn, 0, 255).astype(np.uint8).reshape(-1, SIZE, SIZE, 1)
    return pixels, np.repeat(np.arange(classes), each)


def _finish(
    graph: onnx.GraphProto,
    weights: NDArray[np.float32],
    contract: InputContract,
    name: str,
    version: str,
    metric: Metric,
    examples: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
    *,
    precision: str = "fp32",
    truncations: tuple[int, ...] = (),
    tokenizer: str | None = None,
) -> bytes:
    """Put a manifest in, calibrated on `examples` (embeddings, labels) where there are any."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data = model.SerializeToString(deterministic=True)
    calibrations = []
    for dimension in (DIMENSION, *truncations) if examples is not None else ():
        assert examples is not None
        vectors, labels = examples
        if dimension < DIMENSION:
            vectors = unit(vectors[:, :dimension].astype(np.float64)).astype(np.float32)
        pairs = pair_distances(vectors, labels, metric)
        calibrations.append(
            calibrate(pairs, precision=precision, dimension=dimension, metric=metric)
        )
    weights_digest = hashlib.sha256(weights.tobytes()).hexdigest()
    manifest = Manifest(
        name=name,
        version=version,
        modality={ImageInput: "image", TextInput: "text", TensorInput: "tensor"}[type(contract)],
        input=contract,
        dimension=DIMENSION,
        normalized=False,
        metric=metric,
        space_id=manifests.space_id(weights_digest, contract, DIMENSION, False),
        graph_digest=manifests.digest_of_graph(data),
        precision=precision,
        truncations=truncations,
        calibrations=tuple(calibrations),
    )
    return manifests.attach(data, manifest, tokenizer)
