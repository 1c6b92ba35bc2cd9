"""The newest tritonclient, unchanged, against a real server.

It runs in an environment of its own, `.venv-triton` (make triton), for its pins and its descriptors
collide with ours; CI has it, and elsewhere these tests are skipped where it is not. The snippets of
docs/inference-protocol.md are run there too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from twinserve import __version__

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-triton" / "bin" / "python"
SNIPPET = re.compile(
    r"^<!-- run by tests/server/test_tritonclient\.py -->\n```python\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

PIXELS, _ = twins.classes_of_pixels(4, 1)
EXPECTED = twins.embed_pixels(PIXELS)
VECTORS = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
TEXTS = ["word1 word2 word3", "word4 wörd5 \N{GRINNING FACE}"]

Seen = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if PYTHON.is_file():
        return
    if os.environ.get("CI") == "true":
        pytest.fail("CI has no .venv-triton, which .ci/run makes with make triton")
    pytest.skip("tritonclient is not installed aside: run make triton")


def run(*arguments: str | Path, folder: Path) -> str:
    """Run something with the Python that has tritonclient; return what it printed."""
    done = subprocess.run(
        [PYTHON, "-I", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tri_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("twins")
    made = {
        "small": twins.small_image_twin(),
        "texts": twins.small_text_twin(),
        "vectors": twins.small_tensor_twin(),
        # The name that the demo's twin has, for the snippets.
        "omniglot": twins.small_image_twin("omniglot"),
    }
    flags: list[str | Path] = []
    for name, data in made.items():
        (folder / f"{name}.onnx").write_bytes(data)
        flags += ["--model", folder / f"{name}.onnx"]
    running = conftest.start(*flags, "--data-dir", tmp_path_factory.mktemp("data"))
    yield running
    if running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="module")
def seen(tri_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What every call gave, by name."""
    folder = tmp_path_factory.mktemp("calls")
    np.savez(
        folder / "given.npz",
        pixels=PIXELS,
        pngs=np.array([wire.png(picture) for picture in PIXELS], dtype=np.object_),
        texts=np.array(TEXTS),
        vectors=VECTORS,
    )
    script = Path(__file__).with_name("tritonclient_calls.py")
    found: Seen = json.loads(run(script, tri_server.target, folder / "given.npz", folder=folder))
    return found


def test_it_is_the_release_that_is_pinned(seen: Seen) -> None:
    pins = (ROOT / "tools" / "triton-requirements.txt").read_text()
    assert f"tritonclient=={seen['version']}\n" in pins


def test_the_server_and_its_models_are_live_and_ready(seen: Seen) -> None:
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, True)
    assert seen["unknown_ready"] is False


def test_metadata_and_config_are_read(seen: Seen) -> None:
    assert (seen["server"]["name"], seen["server"]["version"]) == ("twinserve", __version__)
    assert "statistics" in seen["server"]["extensions"]
    assert seen["metadata"]["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": ["-1", "28", "28", "1"]},
        {"name": "encoded_image", "datatype": "BYTES", "shape": ["-1"]},
    ]
    assert seen["metadata"]["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": ["-1", "16"]}
    ]
    config = seen["config"]
    assert (config["name"], config["platform"]) == ("small", "onnxruntime_onnx")
    assert config["max_batch_size"] == 1024
    assert [one["data_type"] for one in config["input"]] == ["TYPE_UINT8", "TYPE_STRING"]
    assert config["input"][1]["optional"] is True
    assert config["output"] == [{"name": "embedding", "data_type": "TYPE_FP32", "dims": ["16"]}]
    assert config["dynamic_batching"]["priority_levels"] == "3"
    assert config["parameters"]["metric"]["string_value"] == "euclidean"
    assert config["parameters"]["space_id"]["string_value"].startswith("sp_")


@pytest.mark.parametrize("form", ["pixels", "encoded", "encoded_column", "async", "asyncio"])
def test_pictures_become_embeddings_in_every_form(seen: Seen, form: str) -> None:
    np.testing.assert_allclose(seen[form], EXPECTED, atol=1e-5)


def test_texts_and_tensors_become_embeddings(seen: Seen) -> None:
    np.testing.assert_allclose(seen["texts"], twins.embed_texts(TEXTS), atol=1e-5)
    expected = VECTORS @ twins.projection(8, seed=5)
    np.testing.assert_allclose(seen["vectors"], expected, atol=1e-5)


def test_parameters_of_the_client_reach_the_twin(seen: Seen) -> None:
    expected = twins.embed_texts(TEXTS, twins.PROMPTS["query"])[:, :8]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(seen["fewer"], expected, atol=1e-5)
    assert seen["fewer_space"].startswith("sp_")


def test_a_call_with_every_option_is_answered_with_its_id(seen: Seen) -> None:
    everything = seen["everything"]
    np.testing.assert_allclose(everything["rows"], EXPECTED, atol=1e-5)
    assert everything["id"] == "call-7"
    assert everything["model"] == ["small", "1"]
    assert everything["output"] == {"name": "embedding", "datatype": "FP32", "shape": ["4", "16"]}
    assert seen["async_errors"] == []


def test_statistics_count_what_the_client_has_sent(seen: Seen) -> None:
    (small,) = seen["statistics"]
    # Four calls of four rows, and four of one in both asynchronous forms.
    calls, rows = 4 + 4 + 4, 4 * 4 + 4 + 4
    assert int(small["inference_count"]) == rows
    assert 1 <= int(small["execution_count"]) <= calls
    stats = small["inference_stats"]
    assert int(stats["success"]["count"]) == calls
    assert "count" not in stats["fail"], "none has failed so far"
    for part in ("queue", "compute_input", "compute_infer"):
        assert 0 < int(stats[part]["ns"]) < int(stats["success"]["ns"])
    sizes = {
        int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in small["batch_stats"]
    }
    assert sum(size * count for size, count in sizes.items()) == rows
    assert {one["name"] for one in seen["all_statistics"]} == {
        "small",
        "texts",
        "vectors",
        "omniglot",
    }


@pytest.mark.parametrize(
    ("case", "status", "words"),
    [
        ("unknown model", "NOT_FOUND", "model nobody is not served"),
        ("unknown version", "NOT_FOUND", "small@9"),
        ("unknown input", "INVALID_ARGUMENT", "image (UINT8) or encoded_image (BYTES)"),
        ("wrong datatype", "INVALID_ARGUMENT", "'FP32'"),
        ("wrong shape", "INVALID_ARGUMENT", "[batch, 28, 28, 1]"),
        ("unknown output", "INVALID_ARGUMENT", "embedding"),
        ("classes", "INVALID_ARGUMENT", "classification"),
        ("bad row", "INVALID_ARGUMENT", "row 1 of input encoded_image"),
        ("too many rows", "INVALID_ARGUMENT", "the limit is 1024"),
        ("long text", "INVALID_ARGUMENT", "row 0 of input text: the text has 42 tokens"),
        ("late", "DEADLINE_EXCEEDED", ""),
        ("wrong urgency", "INVALID_ARGUMENT", "twinserve-priority"),
        ("metadata", "NOT_FOUND", "model nobody is not served"),
        ("statistics", "NOT_FOUND", "model nobody is not served"),
        ("repository", "UNIMPLEMENTED", ""),
    ],
)
def test_a_refusal_is_told_by_code_and_sentence(
    seen: Seen, case: str, status: str, words: str
) -> None:
    told = seen["refusals"][case]
    assert told["status"] == f"StatusCode.{status}"
    assert words in told["message"]


def test_the_snippets_of_the_document_run_as_written(
    tri_server: RunningServer, tmp_path: Path
) -> None:
    page = (ROOT / "docs/inference-protocol.md").read_text()
    snippets = [found["text"] for found in SNIPPET.finditer(page)]
    assert len(snippets) == 2
    (tmp_path / "picture.png").write_bytes(wire.png(PIXELS[0]))
    for snippet in snippets:
        assert "127.0.0.1:50051" in snippet
        run("-c", snippet.replace("127.0.0.1:50051", tri_server.target), folder=tmp_path)
