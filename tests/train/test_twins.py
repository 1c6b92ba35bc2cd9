"""The twin takes what serving sees, and the Siamese pair is symmetric to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twinserve.distance import Metric, paired
from twinserve.manifest import ImageInput, TensorInput, TextInput
from twinserve.train.conv4 import conv4
from twinserve.train.evaluate import embed
from twinserve.train.heads import DistanceHead
from twinserve.train.mlp import mlp
from twinserve.train.twins import ImageTwin, Siamese, TextTwin
from twinserve.train.words import WordTable

CONTRACT = ImageInput(height=28, width=28, channels=1, color_order="L")


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 28, 28, 1), generator=generator, dtype=torch.uint8)


def small_twin(**settings: object) -> ImageTwin:
    torch.manual_seed(0)
    return conv4(CONTRACT, width=8, dimension=16, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", list(Metric))
def test_comparison_is_symmetric_to_the_last_bit(metric: Metric) -> None:
    siamese = Siamese(small_twin(), DistanceHead(metric)).eval()
    first, second = pixels(9, 1), pixels(9, 2)
    assert torch.equal(siamese(first, second), siamese(second, first))


@pytest.mark.parametrize("metric", list(Metric))
def test_the_head_measures_what_serving_measures(metric: Metric) -> None:
    first, second = torch.randn(2, 50, 12, dtype=torch.float64)
    ours = DistanceHead(metric)(first, second).numpy()
    theirs = paired(first.float().numpy(), second.float().numpy(), metric)
    assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_batch_norm_sees_both_inputs_as_one_batch() -> None:
    siamese = Siamese(small_twin(), DistanceHead(Metric.EUCLIDEAN)).train()
    siamese(pixels(4, 1), pixels(4, 2))
    counts = [m for m in siamese.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [int(m.num_batches_tracked or 0) for m in counts] == [1, 1, 1, 1]


def test_prepare_inverts_scales_and_orders_channels() -> None:
    contract = ImageInput(height=16, width=16, channels=3, color_order="RGB")
    twin = conv4(contract, width=4, ink_inverted=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125])
    image = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    image[0, 3, 5] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    prepared = twin.prepare(image)
    assert prepared.shape == (1, 3, 16, 16)
    assert prepared[0, :, 3, 5].tolist() == pytest.approx(
        [(0.0 - 0.1) / 0.5, (1.0 - 0.2) / 0.25, (0.8 - 0.3) / 0.125], abs=1e-5
    )


def test_normalized_embeddings_have_unit_length_and_others_do_not() -> None:
    unit = small_twin(normalized=True).eval()(pixels(5))
    assert unit.shape == (5, 16)
    assert unit.dtype is torch.float32
    assert unit.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    free = small_twin(normalized=False).eval()(pixels(5))
    assert (free.norm(dim=1) - 1.0).abs().max() > 1e-3


def text_twin(pooling: tuple[str, ...] = ("mean",), **settings: object) -> TextTwin:
    contract = TextInput(max_tokens=8)
    return TextTwin(
        WordTable(20, 6),
        contract=contract,
        tokenizer="{}",
        dimension=6 * len(pooling),
        metric=Metric.COSINE,
        normalized=True,
        pooling=pooling,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("pooling", [("mean",), ("cls",), ("max", "lasttoken")])
def test_a_padded_text_has_the_embedding_that_it_has_alone(pooling: tuple[str, ...]) -> None:
    twin = text_twin(pooling)
    rows = [np.arange(1, 1 + length) for length in (3, 7, 1, 5)]
    together = embed(twin, rows)
    alone = np.concatenate([embed(twin, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)


def test_pooling_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="pooling needs attention_mask"):
        TextTwin(
            WordTable(20, 6),
            contract=TextInput(max_tokens=8, inputs=("input_ids",)),
            tokenizer="{}",
            dimension=6,
            metric=Metric.COSINE,
            normalized=True,
        )


def test_texts_are_compared_in_pairs_as_pictures_are() -> None:
    siamese = Siamese(text_twin(), DistanceHead(Metric.COSINE)).eval()
    ids, mask = torch.arange(1, 9).view(2, 4), torch.ones(2, 4, dtype=torch.int64)
    apart = siamese((ids, mask), (ids.flip(0), mask))
    assert siamese((ids, mask), (ids, mask)).tolist() == [0.0, 0.0]
    assert torch.equal(apart, siamese((ids.flip(0), mask), (ids, mask)))
    assert (apart > 0.01).all()


def test_vectors_are_brought_to_mean_zero_and_deviation_one_inside() -> None:
    twin = mlp(TensorInput((3,)), dimension=4, hidden=8).eval()
    rows = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 0.01]) + 7.0
    twin.mean.copy_(rows.mean(dim=0))
    twin.std.copy_(rows.std(dim=0))
    seen: list[torch.Tensor] = []
    twin.body.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    assert twin(rows).shape == (50, 4)
    torch.testing.assert_close(seen[0].mean(dim=0), torch.zeros(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(seen[0].std(dim=0), torch.ones(3), rtol=1e-3, atol=0)


def test_what_is_no_weight_but_changes_embeddings_is_told() -> None:
    assert small_twin().variant != small_twin(ink_inverted=True).variant
    assert text_twin(("mean",)).variant != text_twin(("cls",)).variant


def test_a_picture_and_its_mirror_image_become_one_where_both_are_summed() -> None:
    twin = small_twin().eval()
    twin.mirror_summed = True
    found = twin(pixels(4))
    assert torch.allclose(found, twin(pixels(4).flip(2)), atol=1e-6)
    one_sided = small_twin(normalized=False).eval()
    both = one_sided(pixels(4)) + one_sided(pixels(4).flip(2))
    assert torch.allclose(found, both / both.norm(dim=1, keepdim=True), atol=1e-5)
    assert twin.variant != small_twin().variant


def test_in_training_a_picture_is_seen_from_one_side() -> None:
    twin, other = small_twin().train(), small_twin().train()
    twin.mirror_summed = True
    assert torch.equal(twin(pixels(4)), other(pixels(4)))
