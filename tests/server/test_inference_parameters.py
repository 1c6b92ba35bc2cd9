"""What a ModelInfer's parameters make of the caller."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import twins
from twinserve import manifest
from twinserve.errors import InvalidInput
from twinserve.manifest import Manifest
from twinserve.oip import inference_pb2 as pb
from twinserve.server.callers import Caller, Priority
from twinserve.server.services.inference_parameters import Wishes, read_wishes


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    path = tmp_path_factory.mktemp("twin") / "texts.onnx"
    Path(path).write_bytes(twins.small_text_twin(calibrated=False))
    return manifest.read(path)


def given(**values: pb.InferParameter) -> dict[str, pb.InferParameter]:
    return values


@pytest.mark.parametrize(
    ("level", "of_metadata", "priority"),
    [
        (0, Priority.LOW, Priority.LOW),
        (1, Priority.LOW, Priority.HIGH),
        (2, Priority.HIGH, Priority.NORMAL),
        (3, Priority.HIGH, Priority.LOW),
        (2**63, Priority.HIGH, Priority.LOW),
    ],
)
def test_a_lower_level_is_more_urgent_and_0_leaves_it_to_the_metadata(
    texts: Manifest, level: int, of_metadata: Priority, priority: Priority
) -> None:
    wishes = read_wishes(given(priority=pb.InferParameter(uint64_param=level)), texts)
    assert wishes.of(Caller("somebody", priority=of_metadata)).priority is priority
    assert wishes.of(Caller("somebody")).client == "somebody"


def test_the_nearer_of_timeout_and_deadline_holds(texts: Manifest) -> None:
    wishes = read_wishes(given(timeout=pb.InferParameter(int64_param=5_000_000)), texts)
    now = time.monotonic()
    alone = wishes.of(Caller()).deadline
    assert alone is not None
    assert now + 5 <= alone <= time.monotonic() + 5
    assert wishes.of(Caller(deadline=now + 1)).deadline == now + 1
    nearer = wishes.of(Caller(deadline=now + 100)).deadline
    assert nearer is not None
    assert nearer < now + 100


def test_no_parameter_changes_nothing(texts: Manifest) -> None:
    caller = Caller("somebody", 5.0, Priority.LOW)
    assert read_wishes({}, texts) == Wishes()
    zero = given(
        timeout=pb.InferParameter(int64_param=0), priority=pb.InferParameter(int64_param=0)
    )
    for parameters in ({}, zero, given(sequence_id=pb.InferParameter(string_param="x"))):
        assert read_wishes(parameters, texts).of(caller) == caller


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", pb.InferParameter(double_param=0.5)),
        ("priority", pb.InferParameter(int64_param=-1)),
        ("priority", pb.InferParameter(bool_param=True)),
        ("dimensions", pb.InferParameter(string_param="8")),
        ("prompt", pb.InferParameter(int64_param=1)),
        ("truncate", pb.InferParameter(string_param="true")),
        ("truncate", pb.InferParameter()),
    ],
)
def test_a_parameter_of_another_type_is_refused_by_name(
    texts: Manifest, name: str, value: pb.InferParameter
) -> None:
    with pytest.raises(InvalidInput, match=name) as refused:
        read_wishes({name: value}, texts)
    assert refused.value.field == f"parameters[{name}]"
