"""Tiny models in the forms that others save them: folders of transformers, and ONNX files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from tests.export.text_twins import VOCABULARY, tokenizer_json

HIDDEN = 32
PLACES = 48
SentenceFolder = Callable[..., Path]


@functools.cache
def bert(vocabulary: int = VOCABULARY) -> BertModel:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=PLACES,
    )
    return BertModel(config).eval()


def save_encoder(folder: Path, model: BertModel | None = None) -> Path:
    """A folder as transformers saves an encoder and its tokenizer."""
    (bert() if model is None else model).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": PLACES, **names},
    )
    return folder


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def save_modules(folder: Path, *kinds: str) -> None:
    places = {"Transformer": ""}
    write_json(
        folder / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": places.get(kind, f"{index}_{kind}"),
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, kind in enumerate(kinds)
        ],
    )


def save_pooling(folder: Path, *keys: str, **more: object) -> None:
    config = {"word_embedding_dimension": HIDDEN, **{f"pooling_mode_{key}": True for key in keys}}
    write_json(folder / "1_Pooling" / "config.json", {**config, **more})


def save_dense(folder: Path, weight: torch.Tensor, bias: torch.Tensor, activation: str) -> None:
    config = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": True,
        "activation_function": activation,
    }
    write_json(folder / "config.json", config)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")


@pytest.fixture
def sentence_folder(tmp_path: Path) -> SentenceFolder:
    """Make a folder as sentence-transformers saves it: mean pooling and unit length by default."""

    def make(*poolings: str, normalize: bool = True) -> Path:
        folder = save_encoder(tmp_path / "model")
        save_modules(folder, "Transformer", "Pooling", *(["Normalize"] if normalize else []))
        save_pooling(folder, *(poolings or ("mean_tokens",)))
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24})
        return folder

    return make


def save_vit(folder: Path) -> Path:
    torch.manual_seed(6)
    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 16, "width": 16},
            "resample": 2,
            "rescale_factor": 1 / 255,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.5, 0.6, 0.7],
        },
    )
    return folder


# Graphs made with onnx alone.


def weights(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "foreign",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(
        graph,
        producer_name="elsewhere",
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )


def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


TABLE = weights(VOCABULARY, 8)


def text_graph(
    *,
    opset: int = 17,
    length: str | int = "sequence",
    vocabulary: int = VOCABULARY,
    second: bool = False,
    rank: int = 3,
    mask: bool = True,
    types: bool = False,
) -> onnx.ModelProto:
    """Token states [batch, length, 8]: a look-up in TABLE; with `rank=2`, their masked sum."""
    inputs = [value("input_ids", TensorProto.INT64, "batch", length)]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["states"])]
    constants = {"table": TABLE[:vocabulary]}
    last = "states"
    if mask:
        inputs.append(value("attention_mask", TensorProto.INT64, "batch", length))
        constants["two"] = np.array([2], np.int64)
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "two"], ["wide"]),
            helper.make_node("Mul", ["states", "wide"], ["masked"]),
        ]
        last = "masked"
    if types:
        # Type ids of 0 add nothing, as those of a text twin must.
        inputs.append(value("token_type_ids", TensorProto.INT64, "batch", length))
        nodes += [
            helper.make_node("Cast", ["token_type_ids"], ["kinds"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kinds", "two"], ["wide_kinds"]),
            helper.make_node("Add", [last, "wide_kinds"], ["typed"]),
        ]
        last = "typed"
    outputs = []
    if rank == 3:
        nodes.append(helper.make_node("Identity", [last], ["last_hidden_state"]))
        outputs.append(value("last_hidden_state", TensorProto.FLOAT, "batch", length, 8))
    else:
        constants["one"] = np.array([1], np.int64)
        nodes.append(
            helper.make_node("ReduceSum", [last, "one"], ["sentence_embedding"], keepdims=0)
        )
        outputs.append(value("sentence_embedding", TensorProto.FLOAT, "batch", 8))
    if second:
        constants["zero"] = np.array(0, np.int64)
        nodes.append(helper.make_node("Gather", [last, "zero"], ["first_state"], axis=1))
        outputs.append(value("first_state", TensorProto.FLOAT, "batch", 8))
    return graph_of(nodes, inputs, outputs, constants, opset)


def save_onnx_folder(folder: Path, model: onnx.ModelProto, **config: object) -> Path:
    """A folder as Optimum writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    write_json(
        folder / "config.json",
        {"model_type": "bert", "max_position_embeddings": PLACES, "pad_token_id": 0, **config},
    )
    return folder


KERNEL = weights(5, 3, 4, 4)


def picture_graph(
    *,
    batch: str | int = "batch",
    nhwc: bool = False,
    kind: int = TensorProto.FLOAT,
    reshape: bool = False,
    pooled: bool = True,
    subtract: bool = False,
) -> onnx.ModelProto:
    """16 x 16 colour pictures, one 4 x 4 convolution of stride 4, and the mean over places."""
    shape = (16, 16, 3) if nhwc else (3, 16, 16)
    nodes, last = [], "pixels"
    constants = {"kernel": KERNEL}
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [last], ["floats"], to=TensorProto.FLOAT))
        last = "floats"
    if subtract:
        constants["half"] = np.array(127.5, np.float32)
        nodes += [
            helper.make_node("Sub", [last, "half"], ["less"]),
            helper.make_node("Div", ["less", "half"], ["ready"]),
        ]
        last = "ready"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [last], ["first"], perm=[0, 3, 1, 2]))
        last = "first"
    nodes.append(helper.make_node("Conv", [last, "kernel"], ["map"], strides=[4, 4]))
    outputs = [value("map", TensorProto.FLOAT, batch, 5, 4, 4)]
    if pooled:
        nodes.append(helper.make_node("GlobalAveragePool", ["map"], ["mean"]))
        if reshape:
            # What makes a batch impossible to open: it stands in a constant.
            constants["shape"] = np.array([1, 5], np.int64)
            nodes.append(helper.make_node("Reshape", ["mean", "shape"], ["features"]))
        else:
            nodes.append(helper.make_node("Flatten", ["mean"], ["features"]))
        outputs = [value("features", TensorProto.FLOAT, batch, 5)]
    return graph_of(nodes, [value("pixels", kind, batch, *shape)], outputs, constants)


def picture_features(pixels: np.ndarray) -> np.ndarray:
    """What `picture_graph` gives for float pixels [n, 16, 16, 3], in numpy: [n, 5]."""
    blocks = pixels.reshape(len(pixels), 4, 4, 4, 4, 3)  # n, row, y, column, x, channel
    return np.einsum("nrycxk,okyx->no", blocks, KERNEL) / 16


PROJECTION = weights(6, 4)


def vector_graph(
    *,
    batch: str | int = "batch",
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    wide: str | int = 6,
) -> onnx.ModelProto:
    """Vectors of 6, projected to 4."""
    nodes, last = [], "vector"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["vector"], ["floats"], to=TensorProto.FLOAT))
        last = "floats"
    nodes.append(helper.make_node("MatMul", [last, "weight"], ["projected"]))
    return graph_of(
        nodes,
        [value("vector", kind, batch, wide)],
        [value("projected", TensorProto.FLOAT, batch, 4)],
        {"weight": PROJECTION},
        opset,
    )
