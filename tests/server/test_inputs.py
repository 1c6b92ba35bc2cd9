"""What makes two inputs the same, and rows of texts."""

from __future__ import annotations

import numpy as np
import pytest

from twinserve.manifest import ImageInput, TextInput
from twinserve.server.inputs import Array, ImageBytes, RawInput, Ready, Text, digest

TEXTS = TextInput(16, prompts={"query": "ask ", "ask": "ask ", "tell": "say "})
QUERIES = TextInput(16, prompts=TEXTS.prompts, default_prompt="query")
IMAGES = ImageInput(2, 2, 1, "L")


@pytest.mark.parametrize(
    ("some", "other"),
    [
        (Text("a"), Text("a", "")),
        (Text("a", "query"), Text("a", "ask")),
        (Array(np.zeros((2, 3))), Array(np.zeros((3, 2)).T)),
    ],
)
def test_inputs_that_reach_the_model_alike_are_the_same(some: RawInput, other: RawInput) -> None:
    assert digest(some, TEXTS) == digest(other, TEXTS)


def test_a_default_prompt_is_the_prompt_that_it_names() -> None:
    assert digest(Text("a"), QUERIES) == digest(Text("a", "query"), QUERIES)
    assert digest(Text("a"), QUERIES) != digest(Text("a"), TEXTS)


DIFFERENT: list[RawInput] = [
    Text("a"),
    Text("b"),
    Text("a", "query"),
    Text("a", "tell"),
    Text("a", "unknown"),
    Text("a", truncate=True),
    Text("a", truncate=False),
    Text("ask a"),
    ImageBytes(b"a"),
    Array(np.zeros(2, np.float32)),
    Array(np.zeros(2, np.int64)),
    Array(np.zeros((2, 1), np.float32)),
    Ready(np.zeros(2, np.float32), "sp_1"),
    Ready(np.zeros(2, np.float32), "sp_2"),
]


def test_inputs_that_differ_in_anything_are_not_the_same() -> None:
    assert len({digest(raw, TEXTS) for raw in DIFFERENT}) == len(DIFFERENT)
    assert digest(ImageBytes(b"a"), IMAGES) == digest(ImageBytes(b"a"), TEXTS)
