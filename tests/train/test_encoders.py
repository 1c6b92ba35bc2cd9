"""What an encoder's configuration says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from twinserve.train.encoders import positions_of


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "t5"}, None),
        ({"model_type": "bert", "max_position_embeddings": -1}, None),
    ],
)
def test_places_before_the_first_token_are_not_counted(
    config: dict[str, Any], places: int | None
) -> None:
    assert positions_of(config) == places
