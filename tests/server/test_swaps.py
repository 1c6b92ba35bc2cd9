"""Models swapped under load: no call fails, and every answer is of one version."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import twins
from tests.conftest import RunningServer
from tests.server import swapping, wire
from tests.server.swapping import Clients, Version
from twinserve import manifest as manifests
from twinserve.v1 import model_service_pb2 as pb
from twinserve.v1 import shared_pb2

PIXELS, _ = twins.classes_of_pixels(8, 4)
TEXTS, _ = twins.classes_of_texts(8, 4)


def pixel_twins(folder: Path) -> tuple[list[Path], dict[str, Version]]:
    """Two versions of a small image twin with other weights, and what they answer."""
    files, versions = [], {}
    for version, seed in (("1", 3), ("2", 4)):
        path = folder / f"v{version}.onnx"
        path.write_bytes(twins.small_image_twin(version=version, seed=seed, calibrated=False))
        files.append(path)
        space = manifests.read(path).space_id
        versions[f"small@{version}"] = Version(space, twins.embed_pixels(PIXELS, seed))
    return files, versions


def exposition(server: RunningServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
        return str(reply.read().decode())


def swaps_under_load(
    start: Callable[..., RunningServer], folder: Path, times: int
) -> tuple[RunningServer, list[tuple[int, int]]]:
    """Swap two versions so often; return the server, and its (memory, threads) after each swap."""
    files, versions = pixel_twins(folder)
    flags = ("--model", files[0], "--model-dir", folder, "--data-dir", folder / "data")
    server = start(*flags, "--runners", "2", "--threads", "1")
    with server.channel() as channel:
        stub = wire.Stubs(channel).model
        stub.SetAlias(pb.SetAliasRequest(alias="live", name="small"))
    seen: list[tuple[int, int]] = []
    inputs = [wire.tensor(pixels) for pixels in PIXELS]
    clients = Clients(server, inputs, versions, names=("live", "small", ""))

    def watch(_: int) -> None:
        assert not clients.wrong, clients.wrong
        seen.append((swapping.resident(server), swapping.threads(server)))

    with clients:
        swapping.swap(server, files, list(versions), times, "live", watch)
    assert not clients.wrong, clients.wrong
    assert min(clients.answered[version] for version in versions) > times
    return server, seen


def test_no_call_fails_and_none_is_mixed_up_while_versions_are_swapped(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server, seen = swaps_under_load(start_server, tmp_path, 20)
    assert max(threads for _, threads in seen[5:]) <= max(threads for _, threads in seen[:5]) + 2
    text = exposition(server)
    assert re.findall(r'twinserve_model_info{.*model="(\S+?)"', text) == ["small@1"]
    assert server.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_swaps_fail_no_call_and_leave_nothing_behind(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server, seen = swaps_under_load(start_server, tmp_path, 1000)
    memory = np.array([bytes for bytes, _ in seen], np.float64)
    print(f"MB after 100: {memory[100] / 1e6:.1f}, after 1000: {memory[-1] / 1e6:.1f}")
    assert memory[900:].mean() < 1.05 * memory[100:200].mean()
    assert max(threads for _, threads in seen[900:]) <= max(t for _, t in seen[:100])
    assert len(exposition(server)) < 200_000
    assert server.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_text_twins_are_swapped_as_well(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    files, versions = [], {}
    for version, most in (("1", 16), ("2", 6)):
        # The second reads the first words only.
        path = tmp_path / f"t{version}.onnx"
        twin = twins.small_text_twin(version=version, calibrated=False, max_tokens=most)
        path.write_bytes(twin)
        files.append(path)
        cut = [" ".join(text.split()[: most - 2]) for text in TEXTS]
        versions[f"texts@{version}"] = Version(
            manifests.read(path).space_id, twins.embed_texts(cut)
        )
    flags = ("--model", files[0], "--model-dir", tmp_path, "--data-dir", tmp_path / "data")
    server = start_server(*flags)
    with server.channel() as channel:
        wire.Stubs(channel).model.SetAlias(pb.SetAliasRequest(alias="live", name="texts"))
    inputs = [shared_pb2.Input(text=text) for text in TEXTS]
    with Clients(server, inputs, versions, names=("live", "texts")) as clients:
        swapping.swap(server, files, list(versions), 20, "live")
    assert not clients.wrong, clients.wrong
    assert min(clients.answered[version] for version in versions) > 20
