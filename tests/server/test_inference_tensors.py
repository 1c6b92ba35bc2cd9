"""How a request's tensors become rows: whatever comes, rows or a refusal, and nothing else."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from tests import twins
from twinserve import manifest
from twinserve.errors import InvalidInput, LimitExceeded, WrongShape
from twinserve.manifest import Manifest
from twinserve.oip import inference_pb2 as pb
from twinserve.server.config import Limits
from twinserve.server.inputs import Array
from twinserve.server.services import inference_tensors

LIMITS = Limits(max_items=8)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    path = tmp_path_factory.mktemp("twin") / "twin.onnx"
    found = []
    for data in (
        twins.small_image_twin(calibrated=False),
        twins.small_text_twin(calibrated=False),
        twins.small_tensor_twin(),
    ):
        path.write_bytes(data)
        found.append(manifest.read(path))
    return found


def any_request(dice: random.Random) -> pb.ModelInferRequest:
    """A request that is nearly right, most of the time."""
    request = pb.ModelInferRequest()
    for _ in range(dice.choice([1, 1, 1, 1, 0, 2])):
        name, datatype, shape, size = dice.choice(
            [
                ("image", "UINT8", [28, 28, 1], 784),
                ("encoded_image", "BYTES", [], 0),
                ("text", "BYTES", [1], 0),
                ("tensor", "FP32", [8], 32),
            ]
        )
        rows = dice.choice([1, 2, 3, 8, 9, 0, -1, 2**62])
        if dice.random() < 0.1:
            datatype = dice.choice(["UINT8", "BYTES", "FP32", "INT64", "BF16", ""])
        if dice.random() < 0.1:
            shape = [dice.choice([0, 1, -1, 2**40]) for _ in range(dice.randrange(12))]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[rows, *shape])
        if size:
            block = bytes(max(0, min(rows, 9)) * size + dice.choice([0, 0, 0, 1, -1]) % 5)
        else:
            block = b"".join(
                struct.pack("<I", dice.choice([length, length, length, 2**32 - 1])) + b"a" * length
                for length in [dice.randrange(4) for _ in range(max(0, min(rows, 9)))]
            )
        kind = dice.choice(["raw", "raw", "typed", "both", "none"])
        if kind in ("raw", "both"):
            request.raw_input_contents.append(block)
        if kind in ("typed", "both"):
            contents = tensor.contents
            for _ in range(dice.choice([1, 1, 2])):
                field = dice.choice(["uint", "int64", "fp32", "bytes", "int", "bool", "fp64"])
                count = dice.choice([0, 1, 8, 16, 784])
                values = [b"a"] * count if field == "bytes" else [1] * count
                getattr(contents, f"{field}_contents").extend(values)
    return request


def test_any_request_gives_the_rows_of_its_shape_or_a_refusal(manifests: list[Manifest]) -> None:
    dice = random.Random(5)
    answered, refused = 0, list[InvalidInput]()
    for _ in range(12_000):
        request, twin = any_request(dice), dice.choice(manifests)
        try:
            rows = inference_tensors.read_inputs(request, twin, LIMITS)
        except InvalidInput as error:
            refused.append(error)
            continue
        answered += 1
        assert 1 <= len(rows) == request.inputs[0].shape[0] <= LIMITS.max_items
    assert answered > 100, "the dice give good requests too"
    for error in refused:
        assert error.field.startswith(("inputs", "raw_input_contents"))
        assert len(error.message) < 600


def test_rows_of_a_raw_block_are_views_of_it(manifests: list[Manifest]) -> None:
    pixels, _ = twins.classes_of_pixels(3, 1)
    request = pb.ModelInferRequest(raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    rows = inference_tensors.read_inputs(request, manifests[0], LIMITS)
    for row, picture in zip(rows, pixels, strict=True):
        assert isinstance(row, Array)
        assert not row.array.flags.owndata
        np.testing.assert_array_equal(row.array, picture)


def test_a_block_of_millions_of_elements_is_read_no_further_than_its_shape(
    manifests: list[Manifest],
) -> None:
    request = pb.ModelInferRequest(raw_input_contents=[bytes(4_000_000)])
    request.inputs.add(name="text", datatype="BYTES", shape=[2])
    with pytest.raises(WrongShape, match="says 2 rows, and it has more elements"):
        inference_tensors.read_inputs(request, manifests[1], LIMITS)


def test_too_many_rows_are_told_with_the_limit(manifests: list[Manifest]) -> None:
    request = pb.ModelInferRequest(raw_input_contents=[bytes(9 * 32)])
    request.inputs.add(name="tensor", datatype="FP32", shape=[9, 8])
    with pytest.raises(LimitExceeded, match="has 9 rows, the limit is 8") as refused:
        inference_tensors.read_inputs(request, manifests[2], LIMITS)
    assert refused.value.metadata == {"limit": "8", "value": "9"}
