"""A batch of texts that runs in parts gives what it gives as one, and its gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.export.imports.conftest import save_encoder
from tests.export.text_twins import SENTENCES
from twinserve.tokens import Tokenizer
from twinserve.train.build import build
from twinserve.train.by_length import by_length
from twinserve.train.config import TrainConfig
from twinserve.train.encoders import TextEncoder
from twinserve.train.evaluate import tensors
from twinserve.train.finetuning import text_input
from twinserve.train.twins import TextTwin


def padded(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return ids that are all different, from 1, and the mask."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.arange(1, mask.numel() + 1).view(mask.shape) * mask, mask


def test_each_text_keeps_its_place_and_runs_beside_others_of_its_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (150,), generator=generator).tolist()
    ids, mask = padded(lengths)
    shapes: list[torch.Size] = []

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        assert inputs[0].shape == inputs[1].shape
        shapes.append(inputs[0].shape)
        assert int(inputs[1].sum(dim=1).max()) == inputs[1].shape[1]  # no column of padding alone
        return inputs[0].sum(dim=1, keepdim=True).double()

    found = by_length(run, (ids, mask), mask)
    assert torch.equal(found, ids.sum(dim=1, keepdim=True).double())
    assert len(shapes) > 1
    assert sum(shape[0] for shape in shapes) == 150
    assert [shape[1] for shape in shapes] == sorted((s[1] for s in shapes), reverse=True)
    assert sum(shape.numel() for shape in shapes) < 0.75 * ids.numel()


def test_a_small_batch_and_texts_without_a_token_run_as_one() -> None:
    ids, mask = padded([3, 1, 2])
    assert by_length(lambda inputs: inputs[0][:, :1], (ids, mask), mask).tolist() == [
        [1], [4], [7],
    ]  # fmt: skip
    nothing = torch.zeros(2, 4, dtype=torch.int64)
    assert by_length(lambda inputs: inputs[0], (nothing, nothing), nothing).shape == (2, 1)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> TextTwin:
    """A small BERT of several hundred weights, without dropout."""
    folder = save_encoder(tmp_path_factory.mktemp("model"))
    config = TrainConfig(twin="text_encoder", weights=str(folder))
    made = build(config, *text_input(config, SENTENCES))
    assert isinstance(made, TextTwin)
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def many(twin: TextTwin) -> tuple[Tensor, ...]:
    """Return a batch of 120 texts, most of them short."""
    tokenizer = Tokenizer(twin.tokenizer, twin.contract)
    rows = [tokenizer.encode(text).ids for text in (*SENTENCES, *["a", "cash"] * 7)]
    return tensors((rows * 10)[:120], twin.contract)


def test_an_encoder_learns_the_same_from_a_batch_in_parts(twin: TextTwin) -> None:
    inputs = many(twin)
    weights = torch.randn(twin.dimension, generator=torch.Generator().manual_seed(2))
    calls: list[int] = []
    handle = twin.encoder.register_forward_hook(lambda *_: calls.append(1))

    def learnt() -> tuple[Tensor, dict[str, Tensor]]:
        twin.zero_grad()
        embeddings = twin(*inputs)
        torch.autograd.backward((embeddings @ weights).square().mean())
        return embeddings.detach(), {
            name: one.grad.clone() for name, one in twin.named_parameters() if one.grad is not None
        }

    twin.train()
    parted, slopes = learnt()
    count = len(calls)
    twin.eval()
    whole, wanted = learnt()
    handle.remove()
    assert count > 1
    assert len(calls) == count + 1
    torch.testing.assert_close(parted, whole, rtol=0, atol=1e-6)
    assert slopes.keys() == wanted.keys()
    scale = max(float(one.abs().max()) for one in wanted.values())
    for name, one in wanted.items():
        torch.testing.assert_close(slopes[name], one, rtol=0, atol=1e-5 * scale)


def test_the_table_of_tokens_is_itself_again_afterwards(twin: TextTwin) -> None:
    encoder = twin.encoder
    assert isinstance(encoder, TextEncoder)
    table = encoder.model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.tensor([[5, 3], [3, 0]])
    wanted = table(ids)
    calls: list[int] = []
    handle = table.register_forward_hook(lambda *_: calls.append(1))
    with encoder.looking_up_once(ids):
        assert torch.equal(table(ids), wanted)
    handle.remove()
    assert "forward" not in vars(table)
    with pytest.raises(RuntimeError), encoder.looking_up_once(ids):
        raise RuntimeError
    assert "forward" not in vars(table)
    assert torch.equal(table(torch.tensor([[7]])), table.weight[None, None, 7])
