"""A twin of the user's own: imported when asked, tried before the first step, opened again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Reader

from tests.train import links
from twinserve.distance import Metric
from twinserve.errors import ConfigError, DataError
from twinserve.manifest import ImageInput, InputContract, TensorInput
from twinserve.train import checkpoint, own, state, vocabulary
from twinserve.train.build import build
from twinserve.train.config import TrainConfig, load_config
from twinserve.train.data import Splits
from twinserve.train.evaluate import embed
from twinserve.train.loop import train
from twinserve.train.twins import ImageTwin, TensorTwin, TextTwin, Twin

CODE = """
import torch
from torch import nn
from twinserve.distance import Metric
from twinserve.manifest import TensorInput
from twinserve.train.twins import TensorTwin

number = 3

def make(contract, config, units=6):
    inputs = contract.shape[0]
    return nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, config.dimension))

def picture(contract, config):
    size = contract.channels * contract.height * contract.width
    return nn.Sequential(nn.Flatten(), nn.Linear(size, config.dimension))

class Words(nn.Module):
    masked = True

    def __init__(self, contract, config):
        super().__init__()
        self.table = nn.Embedding(config.vocabulary, config.dimension)

    def forward(self, ids, mask):
        states = self.table(ids)
        if not self.masked:
            return states.mean(dim=1)
        weights = mask.unsqueeze(2).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

class Unmasked(Words):
    masked = False

def whole(contract, config):
    twin = TensorTwin(make(contract, config), contract=contract, dimension=config.dimension,
                      metric=Metric.EUCLIDEAN, normalized=False)
    twin.tag = "mine"
    return twin

def foreign(contract, config):
    return TensorTwin(nn.Identity(), contract=TensorInput((3,)), dimension=config.dimension,
                      metric=Metric.COSINE, normalized=True)

def narrow(contract, config):
    return TensorTwin(nn.Identity(), contract=contract, dimension=3, metric=Metric.COSINE,
                      normalized=True)

def nothing(contract, config):
    return "a network"

def broken(contract, config):
    return nn.Linear(contract.shape[0], None)

class Base(nn.Module):
    def __init__(self, contract, config):
        super().__init__()
        self.linear = nn.Linear(contract.shape[0], config.dimension)

class Wide(Base):
    def forward(self, x):
        return self.linear(x).repeat(1, 2)

class Doubled(Base):
    def forward(self, x):
        return self.linear(x), x

class Double(Base):
    def forward(self, x):
        return self.linear(x).double()

class Constant(Base):
    def forward(self, x):
        return self.linear(torch.zeros_like(x))

class Infinite(Base):
    def forward(self, x):
        return self.linear(x) / 0

class Centred(Base):
    def forward(self, x):
        y = self.linear(x)
        return y - y.mean(dim=0)

class Frozen(Base):
    def forward(self, x):
        return self.linear(x).detach()

class Fails(Base):
    def forward(self, x):
        return self.linear(x.reshape(-1, 5))

class Branches(Base):
    def forward(self, x):
        y = self.linear(x)
        if y.sum() > 0:
            return y
        return 2 * y

class Lacking(Base):
    def forward(self, x):
        return self.linear(x) + torch.linalg.eigvalsh(x[:, :4].reshape(-1, 2, 2)).repeat(1, 2)

class Loops(Base):
    def forward(self, x):
        return torch.stack([self.linear(row) for row in x])

class Otherwise(Base):
    def forward(self, x):
        y = self.linear(x)
        return 2 * y + 1 if torch.compiler.is_exporting() else y
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A module of the user's on Python's path."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "own_net.py").write_text(CODE)
    (folder / "own_broken.py").write_text("import own_absent\n")
    (folder / "own_wrong.py").write_text("1 / 0\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("own_net", "own_broken", "own_wrong"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    before = set(own._asked)
    own._asked.clear()
    yield
    own._asked.clear()
    own._asked.update(before)


CONTRACT = TensorInput((8,))


def config(name: str, **settings: object) -> TrainConfig:
    plain: dict[str, object] = {"twin": f"own_net:{name}", "takes": "tensor", "dimension": 4}
    return TrainConfig(**{**plain, **settings})  # type: ignore[arg-type]


def built(name: str, contract: InputContract = CONTRACT, **settings: object) -> Twin:
    torch.manual_seed(0)
    return build(config(name, **settings), contract)


def test_a_module_becomes_a_twin_that_normalises_for_it() -> None:
    twin = built("make", twin_parameters={"units": 5}, metric="euclidean", normalized=False)
    assert isinstance(twin, TensorTwin)
    assert next(twin.parameters()).shape == (5, 8)
    assert (twin.metric, twin.normalized, twin.dimension) == (Metric.EUCLIDEAN, False, 4)
    pictures = built("picture", ImageInput(16, 16, 1, "L"), takes="image", ink_inverted=True)
    assert isinstance(pictures, ImageTwin)
    assert pictures.ink_inverted


def test_a_twin_is_taken_as_it_is_with_the_config_s_metric() -> None:
    twin = built("whole")
    assert twin.tag == "mine"
    assert (twin.metric, twin.normalized) == (Metric.COSINE, True)


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_try_export", lambda *_: None)  # which takes seconds


def test_a_module_of_texts_gets_ids_and_mask_and_is_held_to_the_mask(no_export: None) -> None:
    tokenizer = vocabulary.train_tokenizer(["where is my card", "what is a fee"], 60)
    contract = vocabulary.contract_for(tokenizer, 16)
    twins = [
        build(config(name, takes="text", vocabulary=60), contract, tokenizer)
        for name in ("Words", "Unmasked")
    ]
    assert isinstance(twins[0], TextTwin)
    assert twins[0].tokenizer == tokenizer
    own.try_out(twins[0], "own_net:Words")
    with pytest.raises(ConfigError, match=r"another embedding padded than alone; leave out"):
        own.try_out(twins[1], "own_net:Unmasked")


def test_a_table_too_small_for_the_tokenizer_is_refused() -> None:
    tokenizer = vocabulary.train_tokenizer(["where is my card", "what is a fee"], 60)
    contract = vocabulary.contract_for(tokenizer, 16)
    largest = Reader.from_str(tokenizer).get_vocab_size()
    twin = build(config("Words", takes="text", vocabulary=largest - 1), contract, tokenizer)
    with pytest.raises(ConfigError, match=r"fails on a batch of \[3, 7\], \[3, 7\] \(IndexError"):
        own.try_out(twin, "own_net:Words")


def test_trying_out_changes_nothing() -> None:
    twin = built("make").train()
    twin.body.append(torch.nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    own.try_out(twin, "own_net:make")
    assert torch.equal(torch.rand(1), expected)
    assert twin.training
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


@pytest.mark.parametrize(
    ("twin", "said"),
    [
        ("own_absent:make", r"no module own_absent on Python's path; .* PYTHONPATH"),
        ("own_net.deeper:make", r"no module own_net.deeper on"),
        ("own_broken:make", r"own_broken:make fails to import \(ModuleNotFoundError.*own_absent"),
        ("own_wrong:make", r"fails to import \(ZeroDivisionError: .*; own_wrong.py, line 1\)"),
        ("own_net:mak", r"own_net has no mak; it has .*make, picture"),
        ("own_net:number", "which is a int and cannot be called"),
        ("own_net:nothing", r"own_net:nothing gives a str; it must give a torch\.nn\.Module"),
        ("own_net:broken", r"fails when it is called .*TypeError.*; own_net\.py, line \d+"),
        ("own_net:foreign", "gives a twin of another contract"),
        ("own_net:narrow", "gives a twin of 3 coordinates, .* set dimension=3"),
    ],
)
def test_a_twin_that_cannot_be_built_is_refused(twin: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(config("make", twin=twin), CONTRACT)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Wide", r"gives float32 \[3, 8\] for a batch of 3; .* \[3, 4\], or set dimension=8"),
        ("Doubled", r"gives a tuple for a batch; it must give one tensor, float32 \[batch, 4\]"),
        ("Double", r"gives float64 \[3, 4\] for a batch of 3"),
        ("Constant", "gives the same embedding for different inputs"),
        ("Infinite", "gives NaN or infinity for drawn inputs"),
        ("Centred", "gives a row another embedding alone than among others"),
        ("Frozen", "nothing to train"),
        ("Fails", r"fails on a batch of \[3, 8\] \(RuntimeError: .*; own_net\.py, line \d+\)"),
        ("Branches", r"not exported: .* looks at the values of a tensor.*; own_net\.py, line \d+"),
    ],
)
def test_a_twin_that_cannot_be_trained_or_exported_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        own.try_out(built(name), f"own_net:{name}")


@pytest.mark.long  # the exporter takes seconds to find that it cannot
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Lacking", r"ONNX has no aten\._linalg_eigh; own_net\.py, line \d+\)"),
        ("Otherwise", r"its graph gives other embeddings than the module"),
        ("Loops", r"its graph takes a batch of 3 only; use no loop over rows"),
    ],
)
def test_what_a_graph_cannot_hold_is_told_with_its_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        own.try_out(built(name), f"own_net:{name}")


def test_settings_of_an_own_twin_are_refused_for_others() -> None:
    with pytest.raises(ConfigError, match=r"twin is conv4: unset it"):
        load_config(None, ["takes=text"])
    with pytest.raises(ConfigError, match=r"twin is conv4: unset it"):
        load_config(None, ["twin_parameters=depth=3"])
    with pytest.raises(ConfigError, match=r"or module:callable for a network of your own"):
        load_config(None, ["twin=own net:make"])
    parsed = load_config(None, ["twin=a.b:C.d", "twin_parameters=depth=3"])
    assert parsed.twin_parameters == {"depth": 3}
    assert parsed.modality == "image"


def test_a_run_trains_and_opens_again_only_where_its_code_was_asked_for(
    tmp_path: Path, module: Path, no_export: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for plot in ("draw_roc", "draw_distances"):  # which take longer than all else
        monkeypatch.setattr(f"twinserve.train.plots.{plot}", lambda *_: None)
    asked = dataclasses.replace(
        links.config(links.write(tmp_path), "pairs", tmp_path / "run"),
        twin="own_net:make",
        takes="tensor",
        loss="contrastive",
        max_steps=2,
    )
    with pytest.raises(
        ConfigError, match=r"told to take image, .* holds vectors; set takes=tensor"
    ):
        train(dataclasses.replace(asked, takes=""), progress=False)
    # A name that is not there is told before the data are read.
    with pytest.raises(ConfigError, match="own_net has no absent"):
        train(dataclasses.replace(asked, twin="own_net:absent", items="none.npy"), progress=False)
    run = train(asked, progress=False)
    assert run.twin.blueprint is not None
    rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    expected = embed(run.twin, rows)
    own._asked.clear()
    sys.modules.pop("own_net")
    with pytest.raises(ConfigError, match=r"give --import-twin own_net:make \(in Python"):
        checkpoint.load(tmp_path / "run")
    assert "own_net" not in sys.modules
    own.ask("own_net:make")
    np.testing.assert_array_equal(embed(checkpoint.load(tmp_path / "run").twin, rows), expected)

    changed = (module / "own_net.py").read_text().replace("units=6", "units=7")
    (module / "own_net.py").write_text(changed)
    sys.modules.pop("own_net")
    with pytest.raises(DataError, match=r"do not fit the own_net:make .* bring back the code"):
        checkpoint.load(tmp_path / "run")


def test_weights_are_the_callable_s_and_not_read_again(tmp_path: Path) -> None:
    seen: list[str] = []

    def make(contract: TensorInput, given: TrainConfig) -> torch.nn.Module:
        seen.append(given.weights)
        return torch.nn.Linear(8, 4)

    sys.modules["own_net_of_weights"] = type(sys)("own_net_of_weights")
    sys.modules["own_net_of_weights"].make = make  # type: ignore[attr-defined]
    asked = config("make", twin="own_net_of_weights:make", weights="pretrained.pt")
    twin = build(asked, CONTRACT)
    checkpoint.save(
        tmp_path, twin=twin, config=asked, splits=Splits((), (), ()), results={}, data_digest="",
        step=0,
    )  # fmt: skip
    own.ask("own_net_of_weights:make")
    checkpoint.load(tmp_path)
    assert seen == ["pretrained.pt", ""]
    sys.modules.pop("own_net_of_weights")


def test_the_state_of_a_training_imports_nothing_that_nobody_asked_for(tmp_path: Path) -> None:
    begun = config("make", data="v.npy", out=str(tmp_path))
    state.save(tmp_path, state.State(begun, {}, {}, {}, 0.0, ""))
    with pytest.raises(ConfigError, match=r"give --import-twin own_net:make"):
        state.config_to_resume(tmp_path)
    own.ask("own_net:make")
    assert state.config_to_resume(tmp_path) == begun
