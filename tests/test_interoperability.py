"""Clients that others made, against one running server: all are told the same.

tritonclient, Node, and a client that knows the server by reflection measure the same two pictures;
OpenAI's SDK embeds texts. Each of them has tests of its own beside this one.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import conftest, twins
from tests.clients.reflected import Reflected
from tests.conftest import RunningServer
from tests.server import wire

ROOT = Path(__file__).resolve().parents[1]
TRITON_PYTHON = ROOT / ".venv-triton" / "bin" / "python"
NODE = ROOT / "examples" / "node"
TEXTS = ["word1 word2 word3", "word4 word5"]
# Run by the Python that has tritonclient: two files in, their embeddings out.
TRITON = """
import json, sys
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

target, *paths = sys.argv[1:]
files = np.array([open(path, "rb").read() for path in paths], dtype=np.object_)
pictures = InferInput("encoded_image", files.shape, "BYTES")
pictures.set_data_from_numpy(files)
result = InferenceServerClient(target).infer("small", [pictures])
print(json.dumps(result.as_numpy("embedding").tolist()))
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of one twin for pictures, and one for texts."""
    folder = tmp_path_factory.mktemp("twins")
    (folder / "small.onnx").write_bytes(twins.small_image_twin())
    (folder / "texts.onnx").write_bytes(twins.small_text_twin())
    models: list[str | Path] = [
        flag for name in ("small", "texts") for flag in ("--model", folder / f"{name}.onnx")
    ]
    models += ["--runners", "1", "--threads", "1"]  # no trials: it starts in a second
    running = conftest.start(*models, "--data-dir", tmp_path_factory.mktemp("data"))
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two picture files."""
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for index, picture in enumerate(twins.classes_of_pixels(2, 1)[0]):
        found.append(folder / f"{index}.png")
        found[-1].write_bytes(wire.png(picture))
    return found


def said_by(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def distance_by_triton(target: str, pictures: list[Path]) -> float:
    first, second = json.loads(said_by(TRITON_PYTHON, "-I", "-c", TRITON, target, *pictures))
    return float(np.linalg.norm(np.subtract(first, second)))


def distance_by_node(target: str, pictures: list[Path]) -> float:
    said = said_by("node", "demo.js", "--target", target, "--model", "small", *pictures)
    (found,) = (line for line in said.splitlines() if line.startswith("found 1.png at "))
    return float(found.split()[-1])


def distance_by_reflection(reflected: Reflected, pictures: list[Path]) -> float:
    first, second = ({"image": base64.b64encode(path.read_bytes()).decode()} for path in pictures)
    reply = reflected.call(
        "twinserve.v1.EmbeddingService",
        "Compare",
        {"model": "small", "pairs": [{"first": first, "second": second}]},
    )
    distance: float = reply["results"][0]["comparison"]["score"]["distance"]
    return distance


def embeddings_by_openai(http_port: int) -> NDArray[np.float32]:
    from openai import OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{http_port}/v1", api_key="none", timeout=30) as client:
        reply = client.embeddings.create(model="texts", input=TEXTS)
    return np.array([one.embedding for one in reply.data], np.float32)


def test_clients_that_others_made_are_told_the_same_by_one_server(
    both: RunningServer, pictures: list[Path]
) -> None:
    conftest.require(TRITON_PYTHON.is_file(), "tritonclient is not installed: run make triton")
    conftest.require(shutil.which("node"), "node is not installed; Node.js 20 or newer brings it")
    conftest.require((NODE / "node_modules").is_dir(), "packages are missing: run make node")

    first, second = twins.embed_pixels(twins.classes_of_pixels(2, 1)[0])
    expected = pytest.approx(float(np.linalg.norm(first - second)), abs=1e-4)
    with both.channel() as channel:
        assert distance_by_reflection(Reflected(channel), pictures) == expected
    assert distance_by_triton(both.target, pictures) == expected
    assert distance_by_node(both.target, pictures) == expected

    if importlib.util.find_spec("twinserve.server.gateway") is None:
        pytest.skip("all agree; OpenAI's SDK is left out, for this server answers no HTTP calls")
    np.testing.assert_allclose(
        embeddings_by_openai(both.http_port), twins.embed_texts(TEXTS), atol=1e-5
    )
