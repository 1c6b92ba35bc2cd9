"""The manifest: written and read back the same, and refused with a sentence whatever is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinserve import manifest as manifests
from twinserve.distance import Metric
from twinserve.errors import ManifestError
from twinserve.manifest import (
    Calibration,
    ImageInput,
    Manifest,
    OperatingPoint,
    TensorInput,
    TextInput,
    attach,
    digest_of_graph,
    read,
    read_graph_digest,
    read_tokenizer,
    space_id,
    truncated_space_id,
    write_atomically,
)


def calibration(**changes: Any) -> Calibration:
    settings: dict[str, Any] = {
        "precision": "fp32",
        "dimension": 8,
        "aggregation": "item",
        "metric": Metric.COSINE,
        "points": (
            OperatingPoint(0.1, 0.12, 0.5, 0.99),
            OperatingPoint(0.01, 0.02, 0.3, 0.9),
        ),
        "default_far": 0.01,
        "slope": 20.0,
        "intercept": 6.0,
        "equal_error_rate": 0.04,
        "classes": 24,
        "genuine_pairs": 4560,
        "impostor_pairs": 110_400,
        "data_digest": "cd" * 32,
    }
    return Calibration(**{**settings, **changes})


def document(**changes: Any) -> Manifest:
    settings: dict[str, Any] = {
        "name": "letters",
        "version": "1",
        "modality": "image",
        "input": ImageInput(28, 28, 1, "L"),
        "dimension": 8,
        "normalized": True,
        "metric": Metric.COSINE,
        "space_id": "sp_" + "0" * 32,
        "graph_digest": "ab" * 32,
        "truncations": (2, 4),
        "calibrations": (calibration(),),
        "parity": {"max_abs_difference": 1e-6},
        "training": {"loss": "triplet", "of": "Ελληνικά"},
    }
    return Manifest(**{**settings, **changes})


def model(weights: int = 10, **properties: str) -> bytes:
    """A small valid ONNX file: embedding = image times a matrix."""
    matrix = np.arange(weights * 8, dtype=np.float32).reshape(weights, 8)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "matrix"], ["embedding"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", weights])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])],
        [onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    helper.set_model_props(built, properties)
    return built.SerializeToString()


def changed(path: str, value: Any) -> str:
    """The good document with one value replaced; `path` such as calibrations.0.slope."""
    raw = json.loads(document().to_json())
    at = raw
    *parents, last = path.split(".")
    for step in parents:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if value is ...:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    return json.dumps(raw)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    path = tmp_path / "twin.onnx"
    path.write_bytes(attach(model(), document()))
    return path


@pytest.mark.parametrize(
    ("modality", "contract"),
    [
        ("image", ImageInput(105, 90, 3, "BGR", resize="pad", resample="lanczos")),
        ("text", TextInput(128, False, {"query": "q: "}, default_prompt="query", pad_id=1)),
        ("tensor", TensorInput((4, 5), "int64")),
    ],
)
def test_a_manifest_reads_back_as_it_was_written(modality: str, contract: Any) -> None:
    written = document(modality=modality, input=contract)
    assert Manifest.from_json(written.to_json()) == written


def test_equal_manifests_give_equal_bytes_whatever_the_order_of_their_keys() -> None:
    one = document(training={"loss": "triplet", "steps": 3})
    other = document(training={"steps": 3, "loss": "triplet"})
    assert one.to_json() == other.to_json()


def test_a_manifest_in_a_file_reads_back_and_the_file_stays_an_onnx_model(twin: Path) -> None:
    assert read(twin) == document()
    opened = onnx.load(twin)
    onnx.checker.check_model(opened)
    assert {entry.key for entry in opened.metadata_props} == {"twinserve"}


def test_attaching_again_replaces_the_manifest_and_keeps_all_else(tmp_path: Path) -> None:
    first = attach(model(author="somebody"), document(version="1"), tokenizer="{}")
    second = attach(first, document(version="2"))
    path = tmp_path / "twin.onnx"
    path.write_bytes(second)
    assert read(path).version == "2"
    assert read_tokenizer(path) is None
    props = [(entry.key, len(entry.value)) for entry in onnx.load(path).metadata_props]
    assert props[0] == ("author", 8)
    assert [key for key, _ in props] == ["author", "twinserve"]
    assert attach(second, document(version="1"), tokenizer="{}") == first


def test_the_tokenizer_travels_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    path.write_bytes(attach(model(), document(), tokenizer='{"version": "1.0"}'))
    assert read_tokenizer(path) == '{"version": "1.0"}'
    assert read(path) == document()


def test_the_graph_digest_is_that_of_the_graphs_own_bytes(twin: Path) -> None:
    expected = hashlib.sha256(onnx.load(twin).graph.SerializeToString()).hexdigest()
    assert read_graph_digest(twin) == expected == digest_of_graph(twin.read_bytes())
    assert digest_of_graph(attach(model(), document(version="2"))) == expected
    assert digest_of_graph(model(weights=11)) != expected


def test_what_could_not_be_read_back_is_not_attached() -> None:
    with pytest.raises(ManifestError, match="name is 'a twin'"):
        attach(model(), document(name="a twin"))


def test_a_twin_above_two_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_BYTES", 1000)
    with pytest.raises(ManifestError, match="above the 2 GB"):
        attach(model(), document())


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.onnx")


def test_a_folder_is_no_twin(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is a folder"):
        read(tmp_path)


def test_an_onnx_file_without_a_manifest_says_how_to_make_a_twin_of_it(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    path.write_bytes(model(producer="twinserve"))
    with pytest.raises(ManifestError, match="twinserve import"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip",
        b"{}",
        b"\x00" * 100,
        b"\xff" * 100,
        b"\x08\x07",
        b"\x3a\x02ab\x3a\x02cd",
        b"\x3a\x00" + b"\x0a\x00" * 200_000,
    ],
    ids=["empty", "zip", "json", "zeros", "ones", "no graph", "two graphs", "endless fields"],
)
def test_what_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    for reader in (read, read_graph_digest, read_tokenizer):
        with pytest.raises(ManifestError, match="not an ONNX model"):
            reader(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = attach(model(), document())
    path = tmp_path / "short.onnx"
    for length in [*range(100), *range(100, len(whole), 5)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ManifestError):
            read(path)


def test_flipped_and_random_bytes_never_raise_anything_but_a_manifest_error(
    tmp_path: Path,
) -> None:
    whole = attach(model(weights=2), document(), tokenizer="{}")
    path = tmp_path / "damaged.onnx"
    generator = np.random.default_rng(20)
    refusals: list[str] = []
    for turn in range(1500):
        if turn % 10 == 0:
            data = bytearray(generator.bytes(int(generator.integers(0, 400))))
        else:
            data = bytearray(whole)
            for _ in range(int(generator.integers(1, 5))):
                data[int(generator.integers(len(data)))] = int(generator.integers(256))
        path.write_bytes(data)
        try:
            read(path)
            read_tokenizer(path)
        except ManifestError as error:
            refusals.append(str(error))
    assert 500 < len(refusals) < 1500, "some damage falls on weights or free text, unseen"
    assert max(map(len, refusals)) < 1000


def test_a_claimed_length_far_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "liar.onnx"
    # Field 14, length 2^62; and a metadata entry whose value claims 2^62 bytes.
    path.write_bytes(b"\x3a\x00\x72" + b"\x80" * 8 + b"\x40" + b"twinserve")
    with pytest.raises(ManifestError, match="cut short"):
        read(path)
    entry = b"\x0a\x09twinserve\x12" + b"\x80" * 8 + b"\x40" + b"{}"
    path.write_bytes(b"\x3a\x00\x72" + bytes([len(entry)]) + entry)
    with pytest.raises(ManifestError, match="metadata is damaged"):
        read(path)


def test_a_sparse_gigabyte_of_graph_is_never_read(tmp_path: Path) -> None:
    # The child may not hold more than 400 MB; reading the graph would need a gigabyte.
    path = tmp_path / "large.onnx"
    gigabyte = 1 << 30
    whole = attach(b"\x3a\x00", document())
    with open(path, "wb") as file:
        file.write(b"\x3a" + bytes([0x80, 0x80, 0x80, 0x80, 0x04]))
        file.seek(gigabyte, os.SEEK_CUR)
        file.write(whole[2:])
    code = (
        "import resource, sys; from twinserve.manifest import read;"
        "resource.setrlimit(resource.RLIMIT_AS, (1000 << 20, 1000 << 20));"
        "print(read(sys.argv[1]).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (0, "letters\n"), done.stderr


def _entries(whole: bytes) -> tuple[bytes, bytes]:
    """Split what `attach` put behind an empty graph: the manifest's entry and the tokenizer's."""
    opened = onnx.ModelProto.FromString(whole)
    entries = []
    for entry in opened.metadata_props:
        alone = onnx.ModelProto()
        alone.metadata_props.append(entry)
        entries.append(alone.SerializeToString())
    manifest, tokenizer = entries
    return manifest, tokenizer


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts bytes read")
def test_reading_takes_the_manifests_own_bytes_whatever_graph_and_tokenizer_weigh(
    tmp_path: Path,
) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = tmp_path / "large.onnx"
    graph = b"\x3a\x80\x80\x80\x19"  # a field of 50 MB
    # The tokenizer stands in front, where a reader of every entry would meet it first.
    whole = attach(b"\x3a\x00", document(), "t" * (20 << 20))
    manifest, tokenizer = _entries(whole)
    with open(path, "wb") as file:
        file.write(tokenizer + graph)
        file.seek(50 << 20, os.SEEK_CUR)
        file.write(manifest)
    before = bytes_read()
    assert read(path) == document()
    assert bytes_read() - before < 100_000
    assert read_tokenizer(path) == "t" * (20 << 20)


def test_reading_needs_no_onnx_and_no_runtime() -> None:
    code = (
        "import sys, twinserve.manifest;"
        "print({'onnx', 'onnxruntime', 'torch', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "3", "null", '"x"', "[" * 100_000, "{}"])
def test_what_is_no_json_object_with_a_schema_is_damaged(text: str) -> None:
    with pytest.raises(ManifestError, match="the manifest is damaged"):
        Manifest.from_json(text)


@pytest.mark.parametrize("schema", ["2.0", "17.3"])
def test_a_newer_major_schema_is_refused_before_anything_else_is_read(schema: str) -> None:
    text = json.dumps({"schema": schema, "modality": "smell"})
    with pytest.raises(ManifestError, match=f"has schema {schema}.*upgrade twinserve"):
        Manifest.from_json(text)


def test_unknown_keys_of_a_newer_minor_schema_are_passed_over() -> None:
    raw = json.loads(changed("schema", "1.7"))
    raw["mood"] = {"new": True}
    raw["input"]["gamma"] = 2.2
    raw["calibrations"][0]["points"][0]["weather"] = "fine"
    found = Manifest.from_json(json.dumps(raw))
    assert found.schema == "1.7"
    assert dataclasses.replace(found, schema="1.1") == document()


@pytest.mark.parametrize("name", [entry.name for entry in dataclasses.fields(Manifest)])
def test_a_missing_key_is_named_or_has_its_default(name: str) -> None:
    (entry,) = (entry for entry in dataclasses.fields(Manifest) if entry.name == name)
    optional = (
        entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
    )
    if optional and name != "schema":
        Manifest.from_json(changed(name, ...))
    else:
        with pytest.raises(ManifestError, match=name):
            Manifest.from_json(changed(name, ...))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 1.0),
        ("schema", "1"),
        ("schema", "0.9"),
        ("schema", "-1.0"),
        ("name", ""),
        ("name", "../../etc"),
        ("name", "a@b"),
        ("name", 7),
        ("version", "x" * 129),
        ("space_id", None),
        ("modality", "smell"),
        ("modality", ["image"]),
        ("dimension", 0),
        ("dimension", -3),
        ("dimension", True),
        ("dimension", 8.0),
        ("dimension", "8"),
        ("dimension", 10**9),
        ("normalized", 1),
        ("normalized", "yes"),
        ("metric", "manhattan"),
        ("metric", ["cosine"]),
        ("truncations", 4),
        ("truncations", [4, 9]),
        ("truncations", [0]),
        ("parity", []),
        ("training", "none"),
        ("calibrations", {}),
        ("input", None),
        ("input.height", 0),
        ("input.height", 28.5),
        ("input.width", 1 << 20),
        ("input.channels", 3),
        ("input.color_order", "CMYK"),
        ("input.resize", "squeeze"),
        ("input.resample", "magic"),
        ("input.decoder", 1),
        ("calibrations.0.dimension", 7),
        ("calibrations.0.metric", ""),
        ("calibrations.0.points", {}),
        ("calibrations.0.default_far", 0.0),
        ("calibrations.0.default_far", 1.0),
        ("calibrations.0.slope", -1.0),
        ("calibrations.0.slope", "steep"),
        ("calibrations.0.intercept", None),
        ("calibrations.0.equal_error_rate", 1.5),
        ("calibrations.0.classes", -1),
        ("calibrations.0.impostor_pairs", 1.5),
        ("calibrations.0.points.0.threshold", -0.1),
        ("calibrations.0.points.0.threshold", True),
        ("calibrations.0.points.0.false_accept_rate", 1.1),
        ("calibrations.0.points.0.false_accept_rate_upper", 0.05),
        ("calibrations.0.points.1.threshold", 0.6),
        ("calibrations.0.points.1.false_accept_rate", 0.2),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(path: str, value: Any) -> None:
    place = path.replace(".0", "[0]").replace(".1", "[1]")
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(changed(path, value))
    # Rates out of order are reported at the point, not at the number.
    assert place in str(caught.value) or place.rsplit(".", 1)[0] in str(caught.value)
    assert "export again" in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    text = changed("calibrations.0.slope", "HERE").replace('"HERE"', number)
    with pytest.raises(ManifestError, match="not JSON"):
        Manifest.from_json(text)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ManifestError, match="not JSON"):
        Manifest.from_json(changed("training", {"of": "HERE"}).replace("HERE", "\\ud800"))


def test_a_whole_number_is_a_number() -> None:
    found = Manifest.from_json(changed("calibrations.0.slope", 20))
    assert found.calibrations[0].slope == 20.0
    assert isinstance(found.calibrations[0].slope, float)


def test_a_wrong_text_or_tensor_contract_is_refused() -> None:
    for contract, place in (
        (TensorInput(()), "input.shape"),
        (TensorInput((3, 0)), r"input.shape\[1\]"),
        (TensorInput((1 << 20, 1 << 20)), "input.shape"),
        (TensorInput((3,), "float16"), "input.data_type"),
        (TextInput(0), "input.max_tokens"),
        (TextInput(8, inputs=()), "input.inputs"),
        (TextInput(8, inputs=("attention_mask",)), "input.inputs"),
        (TextInput(8, inputs=("input_ids", "words")), "input.inputs"),
        (TextInput(8, pad_id=-1), "input.pad_id"),
        (TextInput(8, default_prompt="query"), "input.default_prompt"),
    ):
        modality = "tensor" if isinstance(contract, TensorInput) else "text"
        text = document(modality=modality, input=contract).to_json()
        with pytest.raises(ManifestError, match=place):
            Manifest.from_json(text)


def test_the_calibration_is_found_by_dimension_and_aggregation_in_the_twins_precision() -> None:
    entries = (calibration(precision="int8"), calibration(), calibration(dimension=4))
    found = document(calibrations=entries)
    assert found.calibration(8) is entries[1]
    assert found.calibration(4) is entries[2]
    assert found.calibration(2) is None
    assert found.calibration(8, "mean") is None


def test_the_space_changes_with_all_that_makes_embeddings_comparable_and_nothing_else() -> None:
    grey = ImageInput(28, 28, 1, "L")
    spaces = [
        space_id("aa", grey, 64, True),
        space_id("ab", grey, 64, True),
        space_id("aa", dataclasses.replace(grey, resample="box"), 64, True),
        space_id("aa", dataclasses.replace(grey, decoder="pillow-2"), 64, True),
        space_id("aa", grey, 32, True),
        space_id("aa", grey, 64, False),
    ]
    spaces += [truncated_space_id(spaces[0], 32), truncated_space_id(spaces[0], 16)]
    assert len(set(spaces)) == len(spaces)
    assert space_id("aa", dataclasses.replace(grey), 64, True) == spaces[0]


def test_the_space_of_a_known_twin_keeps_its_name() -> None:
    # Galleries store it, so it may not change with a refactoring.
    grey = ImageInput(28, 28, 1, "L")
    known = space_id("aa", grey, 64, True)
    assert known == "sp_5c7025db73d3070ce6872b899cdc5b3e"


def test_writing_replaces_the_file_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["twin.onnx"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "twin.onnx"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["twin.onnx"]
