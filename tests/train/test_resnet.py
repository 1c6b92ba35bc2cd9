"""Our ResNets bear torchvision's names and shapes, and compute what its architecture says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from twinserve.errors import ConfigError, DataError
from twinserve.manifest import ImageInput
from twinserve.train.build import begin, build
from twinserve.train.config import TrainConfig
from twinserve.train.data import Labelled
from twinserve.train.resnet import DEPTHS, ResNet, cut_off, resnet
from twinserve.train.twins import ImageTwin
from twinserve.train.weights import load_weights

# Parameters of torchvision's networks with their 1000 classes, and entries of their state dicts.
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}
ENTRIES = {18: 122, 34: 218, 50: 320}
STRIDES = {"layer1": 1, "layer2": 2, "layer3": 2, "layer4": 2}


@pytest.mark.parametrize("depth", sorted(DEPTHS))
def test_names_and_sizes_are_those_of_torchvision(depth: int) -> None:
    with torch.device("meta"):
        network = ResNet(depth, channels=3, outputs=1000)
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[depth]
    assert len(state) == ENTRIES[depth]
    names = list(state)
    assert names[:6] == ["conv1.weight", *(f"bn1.{n}" for n in BATCH_NORM)]
    assert names[-2:] == ["fc.weight", "fc.bias"]


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("depth", "name", "shape"),
    [
        (18, "conv1.weight", (64, 3, 7, 7)),
        (18, "layer1.1.conv2.weight", (64, 64, 3, 3)),
        (18, "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        (18, "layer4.1.bn2.running_var", (512,)),
        (18, "fc.weight", (1000, 512)),
        (34, "layer3.5.conv1.weight", (256, 256, 3, 3)),
        (34, "layer4.0.downsample.1.running_mean", (512,)),
        (50, "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        (50, "layer2.0.conv2.weight", (128, 128, 3, 3)),
        (50, "layer3.5.conv3.weight", (1024, 256, 1, 1)),
        (50, "layer4.2.bn3.bias", (2048,)),
        (50, "fc.weight", (1000, 2048)),
    ],
)
def test_some_weights_have_the_shapes_that_are_published(
    depth: int, name: str, shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        state = ResNet(depth, channels=3, outputs=1000).state_dict()
    assert tuple(state[name].shape) == shape


def reference(state: Mapping[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """The published architecture in plain functions of its weights, in eval mode."""

    def convolved(name: str, norm: str, x: Tensor, stride: int, padding: int) -> Tensor:
        x = functional.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)
        mean, variance, weight, bias = (
            state[f"{norm}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = convolved("conv1", "bn1", x, 2, 3).relu()
    x = functional.max_pool2d(x, 3, stride=2, padding=1)
    for layer, first_stride in STRIDES.items():
        blocks = {name.split(".")[1] for name in state if name.startswith(f"{layer}.")}
        for block in sorted(blocks, key=int):
            at = f"{layer}.{block}"
            stride = first_stride if block == "0" else 1
            if depth == 50:
                out = convolved(f"{at}.conv1", f"{at}.bn1", x, 1, 0).relu()
                out = convolved(f"{at}.conv2", f"{at}.bn2", out, stride, 1).relu()
                out = convolved(f"{at}.conv3", f"{at}.bn3", out, 1, 0)
            else:
                out = convolved(f"{at}.conv1", f"{at}.bn1", x, stride, 1).relu()
                out = convolved(f"{at}.conv2", f"{at}.bn2", out, 1, 1)
            if f"{at}.downsample.0.weight" in state:
                x = convolved(f"{at}.downsample.0", f"{at}.downsample.1", x, stride, 0)
            x = (out + x).relu()
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("depth", [18, 50])
def test_a_forward_pass_equals_the_published_architecture(depth: int) -> None:
    torch.manual_seed(depth)
    network = ResNet(depth, channels=3, outputs=5).eval()
    for name, buffer in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.uniform_(0.5, 1.5)  # what batch norm has seen, different in every channel
    x = torch.randn(2, 3, 75, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            network(x), reference(network.state_dict(), depth, x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(("size", "places"), [(28, 4), (64, 8)])
def test_the_small_stem_keeps_small_pictures_large(size: int, places: int) -> None:
    network = ResNet(18, channels=1, outputs=5, stem="small").eval()
    assert tuple(network.conv1.weight.shape) == (64, 1, 3, 3)
    seen: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.inference_mode():
        assert network(torch.randn(1, 1, size, size)).shape == (1, 5)
    assert seen[0].shape[-2:] == (places, places)


def twin(channels: int = 3, stem: str = "imagenet") -> ImageTwin:
    contract = ImageInput(32, 32, channels, "RGB" if channels == 3 else "L")
    return resnet(18, contract, dimension=8, stem=stem)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A network of 1000 classes, as torchvision would save it."""
    torch.manual_seed(7)
    return ResNet(18, channels=3, outputs=1000).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_weights_file_replaces_all_but_the_projection(
    published: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"resnet18{suffix}"
    # Older files of torchvision do not say how many batches were seen.
    state = {n: t for n, t in published.items() if not n.endswith("num_batches_tracked")}
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(state, path)
    fresh = twin()
    projection = fresh.body.fc.weight.clone()  # type: ignore[union-attr, operator]
    load_weights(fresh.body, path)
    for name, tensor in fresh.body.state_dict().items():
        if name.startswith("fc."):
            continue
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, published[name]), name
    assert torch.equal(fresh.body.fc.weight, projection)  # type: ignore[union-attr, arg-type]


def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    fresh = twin(channels=1)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    torch.save({n: t for n, t in published.items() if not n.startswith("layer4.")}, path)
    with pytest.raises(DataError, match=r"lacks layer4\.0\.conv1\.weight, .* and 22 more"):
        load_weights(fresh.body, path)
    torch.save({**published, "head.weight": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=r"beyond what the twin has, head\.weight; check twin"):
        load_weights(fresh.body, path)
    torch.save(published, path)
    with pytest.raises(DataError, match=r"conv1\.weight \(64x3x7x7, the twin's is 64x1x7x7\)"):
        load_weights(fresh.body, path)
    with pytest.raises(DataError, match=r"conv1\.weight \(64x3x7x7, the twin's is 64x3x3x3\)"):
        load_weights(twin(stem="small").body, path)
    assert all(torch.equal(before[n], t) for n, t in fresh.state_dict().items())


def up_to(network: ResNet, x: Tensor, cut: str) -> Tensor:
    """What the whole network holds behind a stage or block, averaged over places."""
    seen: list[Tensor] = []
    network.get_submodule(cut).register_forward_hook(lambda _, __, out: seen.append(out))
    network(x)
    return seen[0].mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("depth", "cut", "width"),
    [(18, "layer3", 256), (50, "layer2.1", 512)],
)
@torch.inference_mode()
def test_a_cut_network_has_the_whole_one_s_intermediate_output(
    tmp_path: Path, depth: int, cut: str, width: int
) -> None:
    torch.manual_seed(1)
    whole = ResNet(depth, channels=3, outputs=1000).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    body = ResNet(depth, channels=3, outputs=8, cut=cut).eval()
    load_weights(body, tmp_path / "whole.pth", cut_off(depth, cut))
    x = torch.randn(2, 3, 32, 32)
    expected = up_to(whole, x, cut)
    torch.testing.assert_close(body.features(x), expected)
    assert body.fc.in_features == width
    torch.testing.assert_close(body(x), body.fc(expected))


def test_a_config_cuts_and_loads_and_the_cut_weights_load_again(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(published, tmp_path / "whole.pth")
    config = TrainConfig(twin="resnet18", color_order="RGB", image_size=32, cut="layer2.0")
    config = dataclasses.replace(config, weights=str(tmp_path / "whole.pth"))
    contract = ImageInput(32, 32, 3, "RGB")
    made = build(config, contract)
    begin(made, config, Labelled(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2), ("a", "b"), ()))
    state = made.state_dict()
    assert torch.equal(state["body.layer2.0.conv1.weight"], published["layer2.0.conv1.weight"])
    assert not any(name.startswith(("body.layer2.1", "body.layer3")) for name in state)
    body = {name.removeprefix("body."): value for name, value in state.items() if "body" in name}
    torch.save(body, tmp_path / "cut.pth")
    load_weights(made.body, tmp_path / "cut.pth")  # type: ignore[arg-type]
    # Without the cut, what the file lacks would be random.
    with pytest.raises(DataError, match=r"lacks layer2\.1\.conv1.* check twin, stem, cut"):
        load_weights(twin().body, tmp_path / "cut.pth")


@pytest.mark.parametrize("cut", ["layer5", "layer3.2", "layer3.x", "fc", "conv1"])
def test_a_cut_that_is_not_there_is_refused(cut: str) -> None:
    with pytest.raises(ConfigError, match=r"resnet18 does not have; .*layer3\.0 to layer3\.1"):
        ResNet(18, channels=1, outputs=2, cut=cut)


def test_a_cut_is_refused_in_a_config_already() -> None:
    with pytest.raises(ConfigError, match=r"cut is 'layer3', .* twin is conv4: unset it"):
        TrainConfig(cut="layer3")
    with pytest.raises(ConfigError, match=r"cut is 'fc'; it must be layer1 to layer4"):
        TrainConfig(twin="resnet18", cut="fc")


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    body = twin().body
    with pytest.raises(ConfigError, match=r"none\.pth', which does not exist"):
        load_weights(body, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match=r"none\.safetensors', which does not exist"):
        load_weights(body, tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"takes a \.pth, \.pt, \.safetensors file"):
        load_weights(body, tmp_path / "w.onnx")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(DataError, match="cannot be read"):
            load_weights(body, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "run.pt")
    for name in ("list.pt", "run.pt"):
        with pytest.raises(DataError, match="something other than tensors by name"):
            load_weights(body, tmp_path / name)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Path("anything")}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(twin().body, tmp_path / "w.pth")
