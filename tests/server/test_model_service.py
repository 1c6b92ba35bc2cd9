"""Loading, unloading, aliases and shadow runs on a real server, its restarts and its deaths."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve import manifest as manifests
from twinserve.distance import Metric, paired
from twinserve.v1 import embedding_service_pb2, gallery_pb2, gallery_service_pb2, model_pb2
from twinserve.v1 import model_service_pb2 as pb

# Settings that need not be measured make a start short.
GIVEN = ("--runners", "1", "--threads", "1")
PIXELS, _ = twins.classes_of_pixels(10, 4)
SEED = 20261124


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small@1, the same in another precision, small@2 of another space, and a broken file."""
    folder = tmp_path_factory.mktemp("twins")
    (folder / "v1.onnx").write_bytes(twins.small_image_twin())
    (folder / "v1.int8.onnx").write_bytes(twins.small_image_twin(precision="int8"))
    (folder / "v2.onnx").write_bytes(twins.small_image_twin(version="2", seed=4))
    (folder / "texts.onnx").write_bytes(twins.small_text_twin(calibrated=False))
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


@pytest.fixture(scope="module")
def flags(twin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    data = tmp_path_factory.mktemp("data")
    flags = ("--model", twin_folder / "v1.onnx", "--model-dir", twin_folder, "--data-dir", data)
    return (*flags, *GIVEN)


@pytest.fixture(scope="module")
def shared(flags: tuple[str | Path, ...]) -> Iterator[RunningServer]:
    running = conftest.start(*flags)
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture
def stubs(shared: RunningServer) -> Iterator[Stubs]:
    """Stubs of a server that serves small@1 alone, before and afterwards."""
    with shared.channel() as channel:
        found = Stubs(channel)
        yield found
        for model in served(found):
            if (model.name, model.version) != ("small", "1"):
                found.model.UnloadModel(
                    pb.UnloadModelRequest(name=model.name, version=model.version, force=True)
                )
        for alias in served(found)[0].aliases:
            found.model.DeleteAlias(pb.DeleteAliasRequest(alias=alias, force=True))


def served(stubs: Stubs) -> list[model_pb2.Model]:
    return list(stubs.model.ListModels(pb.ListModelsRequest()).models)


def names(stubs: Stubs) -> list[str]:
    return [f"{model.name}@{model.version}" for model in served(stubs)]


def embed(stubs: Stubs, at: int, model: str = "") -> embedding_service_pb2.EmbedResponse:
    return stubs.embedding.Embed(
        embedding_service_pb2.EmbedRequest(model=model, inputs=[wire.tensor(PIXELS[at])])
    )


def until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.025)
    raise AssertionError("30 s have passed")


def test_a_model_is_loaded_aliased_and_unloaded(stubs: Stubs, twin_folder: Path) -> None:
    loaded = stubs.model.LoadModel(
        pb.LoadModelRequest(file="v2.onnx", aliases=["live", "canary"])
    ).model
    assert (loaded.name, loaded.version, loaded.file) == ("small", "2", "v2.onnx")
    assert list(loaded.aliases) == ["canary", "live"]
    assert len(loaded.file_digest) == 64
    assert loaded.space_id == manifests.read(twin_folder / "v2.onnx").space_id
    assert names(stubs) == ["small@1", "small@2"]
    reply = embed(stubs, 0, "live")
    assert reply.model_version == "small@2"
    np.testing.assert_allclose(
        reply.results[0].embedding.values, twins.embed_pixels(PIXELS[:1], 4)[0], atol=1e-4
    )
    moved = stubs.model.SetAlias(pb.SetAliasRequest(alias="live", name="small", version="1")).model
    assert moved.version == "1"
    assert list(moved.aliases) == ["live"]
    assert embed(stubs, 0, "live").model_version == "small@1"
    stubs.model.DeleteAlias(pb.DeleteAliasRequest(alias="canary"))
    stubs.model.UnloadModel(pb.UnloadModelRequest(name="small", version="2"))
    assert names(stubs) == ["small@1"]
    with Refused(grpc.StatusCode.NOT_FOUND) as refused:
        embed(stubs, 0, "small@2")
    assert wire.reason(refused.status) == "MODEL_NOT_FOUND"


def test_refusals_have_their_code_and_their_field(stubs: Stubs) -> None:
    load, unload = stubs.model.LoadModel, stubs.model.UnloadModel
    with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        load(pb.LoadModelRequest(file="broken.onnx"))
    assert wire.reason(refused.status) == "BAD_MANIFEST"
    assert refused.status.message.startswith("broken.onnx")
    for code, file in (
        (grpc.StatusCode.INVALID_ARGUMENT, "../v1.onnx"),
        (grpc.StatusCode.INVALID_ARGUMENT, ""),
        (grpc.StatusCode.NOT_FOUND, "none.onnx"),
    ):
        with Refused(code) as refused:
            load(pb.LoadModelRequest(file=file))
        assert wire.field(refused.status) == "file"
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        load(pb.LoadModelRequest(file="v2.onnx", aliases=["good", "not good"]))
    assert wire.field(refused.status) == "aliases[1]"
    with Refused(grpc.StatusCode.NOT_FOUND):
        unload(pb.UnloadModelRequest(name="nobody"))
    with Refused(grpc.StatusCode.NOT_FOUND):
        stubs.model.DeleteAlias(pb.DeleteAliasRequest(alias="nobody"))
    for share in (0.0, 1.1, float("nan")):
        with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            stubs.model.StartShadow(
                pb.StartShadowRequest(candidate="small", model="small", share=share)
            )
        assert wire.field(refused.status) == "share"
    with Refused(grpc.StatusCode.FAILED_PRECONDITION):
        stubs.model.StartShadow(pb.StartShadowRequest(candidate="small", model="small", share=1))
    with Refused(grpc.StatusCode.NOT_FOUND):
        stubs.model.StopShadow(pb.StopShadowRequest(candidate="small"))
    assert names(stubs) == ["small@1"]


def test_a_gallery_keeps_its_space(stubs: Stubs) -> None:
    stubs.gallery.CreateGallery(
        gallery_service_pb2.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name="people"))
    )
    try:
        with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
            stubs.model.LoadModel(pb.LoadModelRequest(file="v2.onnx"))
        assert "small would move from small@1 to small@2" in refused.status.message
        assert "gallery people" in refused.status.message
        stubs.model.LoadModel(pb.LoadModelRequest(file="v2.onnx", name="next"))
        with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
            stubs.model.UnloadModel(pb.UnloadModelRequest(name="small"))
        assert "gallery people" in refused.status.message
        search = gallery_service_pb2.SearchRequest(
            gallery="people", probes=[wire.tensor(PIXELS[0])]
        )
        assert stubs.gallery.Search(search).model_version == "small@1"
    finally:
        stubs.gallery.DeleteGallery(gallery_service_pb2.DeleteGalleryRequest(name="people"))


def report(stubs: Stubs, name: str) -> model_pb2.Shadow:
    return stubs.model.GetModel(pb.GetModelRequest(name=name)).model.shadow


def answered(stubs: Stubs, name: str, calls: int) -> None:
    until(lambda: report(stubs, name).calls == calls)


def scraped(server: RunningServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
        return str(reply.read().decode())


def test_a_shadow_run_measures_the_drift_of_another_precision(
    stubs: Stubs, shared: RunningServer
) -> None:
    stubs.model.LoadModel(pb.LoadModelRequest(file="v1.int8.onnx", name="small-int8"))
    began = stubs.model.StartShadow(
        pb.StartShadowRequest(candidate="small-int8", model="small", share=1.0)
    ).shadow
    assert began.comparable
    assert not began.HasField("mean_drift"), "nothing is known yet"
    for at in range(len(PIXELS)):
        assert embed(stubs, at).model_version == "small@1", "callers see nothing of it"
        if at % 8 == 7:  # before so many wait that calls are skipped
            answered(stubs, "small-int8", at + 1)
    exact = PIXELS.reshape(len(PIXELS), -1).astype(np.float64) / 255
    weights = twins.projection(28 * 28)
    rounded = weights.astype(np.float16).astype(np.float32)
    drift = paired(exact @ weights, exact @ rounded, Metric.COSINE)
    text = scraped(shared)
    assert 'twinserve_shadow_calls{candidate="small-int8@1",model="small@1"} 40.0' in text
    assert "twinserve_shadow_mean_drift{" in text
    last = stubs.model.StopShadow(pb.StopShadowRequest(candidate="small-int8")).shadow
    assert (last.calls, last.items, last.failed, last.skipped) == (40, 40, 0, 0)
    assert last.mean_drift == pytest.approx(drift.mean(), rel=0.05)
    assert last.worst_drift == pytest.approx(drift.max(), rel=0.05)
    # Each of 40 items with up to eight before it; fp16 weights move no decision of these.
    assert last.pairs == sum(min(i, 8) for i in range(40))
    assert last.pairs_decided_otherwise <= 2
    assert 0 < last.pairs_matched < last.pairs
    assert 0 < last.candidate_p50_seconds <= last.candidate_p99_seconds < 30
    assert "twinserve_shadow_calls{" not in scraped(shared)
    embed(stubs, 0)
    with Refused(grpc.StatusCode.NOT_FOUND):
        stubs.model.StopShadow(pb.StopShadowRequest(candidate="small-int8"))


def test_a_shadow_run_of_another_space_claims_no_drift(stubs: Stubs) -> None:
    stubs.model.LoadModel(pb.LoadModelRequest(file="v2.onnx", name="next"))
    stubs.model.StartShadow(pb.StartShadowRequest(candidate="next", model="small", share=0.25))
    for at in range(40):
        embed(stubs, at)
    answered(stubs, "next", 10)
    last = stubs.model.StopShadow(pb.StopShadowRequest(candidate="next")).shadow
    assert not last.comparable
    assert not last.HasField("mean_drift")
    assert last.failed == 0


def test_a_candidate_takes_the_models_inputs_and_may_be_unloaded(stubs: Stubs) -> None:
    stubs.model.LoadModel(pb.LoadModelRequest(file="texts.onnx"))
    with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        stubs.model.StartShadow(pb.StartShadowRequest(candidate="texts", model="small", share=1))
    assert "takes image" in refused.status.message
    stubs.model.LoadModel(pb.LoadModelRequest(file="v2.onnx", name="next"))
    stubs.model.StartShadow(pb.StartShadowRequest(candidate="next", model="small", share=1))
    # Unloading a candidate ends its run.
    stubs.model.UnloadModel(pb.UnloadModelRequest(name="next"))
    assert embed(stubs, 0, "small").model_version == "small@1"


def test_a_restart_serves_the_same_and_a_changed_file_refuses_it(
    start_server: Callable[..., RunningServer], twin_folder: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "v2.onnx").write_bytes((twin_folder / "v2.onnx").read_bytes())
    flags = ("--model", twin_folder / "v1.onnx", "--data-dir", tmp_path, "--model-dir", models)
    flags = (*flags, *GIVEN)
    server = start_server(*flags)
    with server.channel() as channel:
        Stubs(channel).model.LoadModel(pb.LoadModelRequest(file="v2.onnx", aliases=["live"]))
    assert server.stop() == 0
    server = start_server(*flags)
    with server.channel() as channel:
        assert names(Stubs(channel)) == ["small@1", "small@2"]
        assert embed(Stubs(channel), 0, "live").model_version == "small@2"
    server.kill()
    (models / "v2.onnx").write_bytes(twins.small_image_twin(version="2", seed=7))
    with pytest.raises(AssertionError, match=r"remembers small@2.*other content now") as refused:
        start_server(*flags)
    assert "Traceback" not in str(refused.value)
    server = start_server(*flags, "--forget-models")
    with server.channel() as channel:
        assert names(Stubs(channel)) == ["small@1"]


def kill_during_loads(flags: tuple[str | Path, ...], kills: int) -> set[str]:
    """Kill a server in the middle of loads; return the states that restarts found."""
    moments, found = random.Random(SEED), set()
    for turn in range(kills):
        server = conftest.start(*flags)
        try:
            with server.channel() as channel:
                stubs = Stubs(channel)
                loaded = [model for model in served(stubs) if model.file]
                state = f"{[(m.version, list(m.aliases)) for m in loaded]}"
                assert state in ("[]", "[('2', ['live'])]"), "either the old or the new state"
                found.add(state)
                if loaded:
                    assert embed(stubs, 0, "live").model_version == "small@2"
                    stubs.model.UnloadModel(
                        pb.UnloadModelRequest(name="small", version="2", force=True)
                    )

                def load(stubs: Stubs = stubs) -> None:
                    with contextlib.suppress(grpc.RpcError):
                        stubs.model.LoadModel(pb.LoadModelRequest(file="v2.onnx", aliases=["live"]))

                loading = threading.Thread(target=load)
                loading.start()
                # From before its first byte is read to after the reply.
                loading.join(moments.uniform(0.0, 0.3) if turn % 3 else 30.0)
                server.kill()
                loading.join()
        finally:
            if server.process.poll() is None:
                server.kill()
    return found


def test_a_kill_during_a_load_leaves_the_old_or_the_new_state(
    twin_folder: Path, tmp_path: Path
) -> None:
    flags = ("--model", twin_folder / "v1.onnx", "--data-dir", tmp_path, *GIVEN)
    assert len(kill_during_loads((*flags, "--model-dir", twin_folder), kills=3)) == 2


@pytest.mark.long
def test_fifty_kills_during_loads_leave_the_old_or_the_new_state(
    twin_folder: Path, tmp_path: Path
) -> None:
    flags = ("--model", twin_folder / "v1.onnx", "--data-dir", tmp_path, *GIVEN)
    assert len(kill_during_loads((*flags, "--model-dir", twin_folder), kills=50)) == 2
