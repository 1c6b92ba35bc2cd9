"""`twinserve model` and the client's calls behind it, against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from twinserve.cli.__main__ import main
from twinserve.client import Client
from twinserve.errors import FailedPrecondition, ModelNotFound, NotFound

Run = Callable[..., tuple[int, str, str]]
PIXELS, _ = twins.classes_of_pixels(4, 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("twins")
    (folder / "v1.onnx").write_bytes(twins.small_image_twin())
    (folder / "v1.int8.onnx").write_bytes(twins.small_image_twin(precision="int8"))
    (folder / "v2.onnx").write_bytes(twins.small_image_twin(version="2", seed=4))
    flags = ("--model", folder / "v1.onnx", "--model-dir", folder, "--data-dir", folder / "data")
    running = conftest.start(*flags, "--runners", "1", "--threads", "1")
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture
def run(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `twinserve model …` in this process: (exit code, standard output, standard error)."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["model", *words, "--target", server.target])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_version_is_loaded_named_shown_and_unloaded(run: Run) -> None:
    code, out, _ = run("load", "v2.onnx", "--alias", "live", "--alias", "next")
    assert (code, out) == (0, "small@2 is served in fp32, aliases live, next\n")
    assert "live, next" in run("list")[1]
    assert json.loads(run("show", "live", "--json")[1])["version"] == "2"
    assert run("alias", "live", "small@1")[1] == "small@1 is served in fp32, aliases live\n"
    document = json.loads(run("alias", "live", "small", "--json")[1])
    assert (document["version"], document["file"]) == ("2", "v2.onnx")
    assert "manifest" not in document
    assert json.loads(run("show", "live", "--json")[1])["manifest"]["name"] == "small"
    code, _, err = run("unload", "small@2")
    assert code == 2
    assert "alias live, next points at small@2; move or delete" in err
    assert run("alias", "next", "--delete")[1] == "next is no alias any more\n"
    assert run("unload", "small@2", "--force")[1] == "small@2 is served no more\n"
    assert [model["version"] for model in json.loads(run("list", "--json")[1])] == ["1"]


def test_a_candidate_is_tried_on_live_calls(run: Run, server: RunningServer) -> None:
    assert run("load", "v1.int8.onnx", "--name", "small-int8")[0] == 0
    begun = run("shadow", "small-int8", "--of", "small", "--share", "1")[1]
    assert "share              1" in begun
    assert "p50" not in begun, "no call was mirrored yet"
    with Client(server.target) as client:
        client.embed(list(PIXELS), "small")
        for _ in range(1000):
            shadow = client.model("small-int8").shadow
            assert shadow is not None
            if shadow.calls:
                break
        assert client.model("small").shadow is None
    out = run("shadow", "small-int8")[1]
    assert "calls              1 (0 skipped)" in out
    assert "cosine drift       mean " in out
    assert "of 28 pairs at FAR" in out
    assert out.count("p50") == 2
    last = json.loads(run("shadow", "small-int8", "--stop", "--json")[1])
    assert last["items"] == 8
    assert 0 < last["mean_drift"] <= last["worst_drift"] < 1e-4
    code, _, err = run("shadow", "small-int8")
    assert code == 2
    assert "not the candidate of a shadow run; begin one with --of" in err
    assert run("unload", "small-int8")[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("load", "none.onnx"), "no file 'none.onnx' in the server's model folder"),
        (("alias", "live"), "either the model that the alias is to point at, or --delete"),
        (("alias", "live", "small", "--delete"), "either the model"),
        (("shadow", "small", "--of", "small", "--stop"), "not both"),
        (("unload", "nobody"), "nobody is not served; those that are: small@1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run: Run, words: tuple[str, ...], says: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_the_client_raises_what_the_server_raised(server: RunningServer) -> None:
    with Client(server.target) as client:
        with pytest.raises(NotFound):
            client.load_model("none.onnx")
        with pytest.raises(ModelNotFound):
            client.unload_model("small", "9")
        with pytest.raises(NotFound):
            client.delete_alias("none")
        with pytest.raises(NotFound):
            client.stop_shadow("small")
        with pytest.raises(FailedPrecondition):
            client.start_shadow("small", "small", 0.5)
        loaded = client.load_model("v2.onnx", "other", aliases=["b"])
        assert (loaded.name, loaded.aliases, loaded.file) == ("other", ("b",), "v2.onnx")
        np.testing.assert_allclose(
            client.embed([PIXELS[0]], "b").vectors, twins.embed_pixels(PIXELS[:1], 4), atol=1e-4
        )
        client.unload_model("other", force=True)
