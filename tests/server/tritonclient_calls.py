"""Calls a server with tritonclient and prints what came back as JSON; no test by itself.

`test_tritonclient.py` runs it with the Python of .venv-triton, which has no twinserve, and
compares.
In: the server's address and an .npz with `pixels` (uint8 [n, 28, 28, 1]), `pngs` (n files), `texts`
and `vectors` (float32 [n, 8]).
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, aio
from tritonclient.utils import InferenceServerException

LONG = "word7 " * 40


def given(name: str, datatype: str, values: Any) -> InferInput:
    """An input of these values, in one raw block."""
    array = np.asarray(values)
    made = InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def rows(result: Any) -> list[list[float]]:
    """The embeddings of a result."""
    return result.as_numpy("embedding").tolist()


def refused(client: InferenceServerClient, *arguments: Any, **options: Any) -> dict[str, str]:
    """What a client is told of a call that is refused."""
    try:
        client.infer(*arguments, **options)
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": str(error.message())}
    return {"status": "OK", "message": ""}


def main(address: str, data: str) -> dict[str, Any]:
    """Make every call once, and return what each gave."""
    arrays = np.load(data, allow_pickle=True)
    pixels, vectors = arrays["pixels"], arrays["vectors"]
    pngs = arrays["pngs"].astype(np.object_)
    client = InferenceServerClient(address)
    seen: dict[str, Any] = {"version": version("tritonclient")}

    seen["live"] = client.is_server_live()
    seen["ready"] = client.is_server_ready()
    seen["model_ready"] = client.is_model_ready("small", "1")
    seen["unknown_ready"] = client.is_model_ready("nobody")
    seen["server"] = client.get_server_metadata(as_json=True)
    seen["metadata"] = client.get_model_metadata("small", as_json=True)
    seen["config"] = client.get_model_config("small", as_json=True)["config"]

    image = [given("image", "UINT8", pixels)]
    texts = [given("text", "BYTES", arrays["texts"].astype(np.object_))]
    seen["pixels"] = rows(client.infer("small", image))
    seen["encoded"] = rows(client.infer("small", [given("encoded_image", "BYTES", pngs)]))
    column = pngs.reshape(-1, 1)
    seen["encoded_column"] = rows(client.infer("small", [given("encoded_image", "BYTES", column)]))
    seen["texts"] = rows(client.infer("texts", texts))
    fewer = client.infer("texts", texts, parameters={"dimensions": 8, "prompt": "query"})
    seen["fewer"] = rows(fewer)
    seen["fewer_space"] = fewer.get_response().parameters["space_id"].string_param
    seen["vectors"] = rows(client.infer("vectors", [given("tensor", "FP32", vectors)]))

    result = client.infer(
        "small",
        image,
        model_version="1",
        outputs=[InferRequestedOutput("embedding")],
        request_id="call-7",
        sequence_id=3,
        sequence_start=True,
        priority=1,
        timeout=30_000_000,
        client_timeout=30,
        headers={"twinserve-priority": "low"},
        compression_algorithm="gzip",
    )
    response = result.get_response()
    seen["everything"] = {
        "rows": rows(result),
        "id": response.id,
        "model": [response.model_name, response.model_version],
        "output": json_format.MessageToDict(result.get_output("embedding")),
    }

    done: queue.Queue[Any] = queue.Queue()
    for index in range(len(pixels)):
        client.async_infer(
            "small",
            [given("image", "UINT8", pixels[index : index + 1])],
            lambda result, error, index=index: done.put((index, result, error)),
        )
    answers = sorted((done.get(timeout=30) for _ in pixels), key=lambda one: one[0])
    seen["async_errors"] = [str(error) for _, _, error in answers if error is not None]
    seen["async"] = [rows(result)[0] for _, result, error in answers if error is None]
    seen["asyncio"] = asyncio.run(with_asyncio(address, pixels))

    seen["statistics"] = client.get_inference_statistics("small", as_json=True)["model_stats"]
    seen["all_statistics"] = client.get_inference_statistics(as_json=True)["model_stats"]

    tiny = [given("image", "UINT8", pixels[:1])]
    bad = np.array([pngs[0], b"no picture"], dtype=np.object_)
    seen["refusals"] = {
        "unknown model": refused(client, "nobody", image),
        "unknown version": refused(client, "small", image, model_version="9"),
        "unknown input": refused(client, "small", [given("pixels", "UINT8", pixels)]),
        "wrong datatype": refused(client, "small", [given("image", "FP32", np.float32(pixels))]),
        "wrong shape": refused(client, "small", [given("image", "UINT8", pixels[:, 1:])]),
        "unknown output": refused(client, "small", image, outputs=[InferRequestedOutput("x")]),
        "classes": refused(
            client, "small", image, outputs=[InferRequestedOutput("embedding", class_count=3)]
        ),
        "bad row": refused(client, "small", [given("encoded_image", "BYTES", bad)]),
        "too many rows": refused(
            client, "small", [given("image", "UINT8", np.repeat(pixels[:1], 1025, axis=0))]
        ),
        "long text": refused(
            client,
            "texts",
            [given("text", "BYTES", np.array([LONG], dtype=np.object_))],
            parameters={"truncate": False},
        ),
        "late": refused(client, "small", tiny, timeout=1),
        "wrong urgency": refused(client, "small", tiny, headers={"twinserve-priority": "soon"}),
    }
    calls = {
        "metadata": lambda: client.get_model_metadata("nobody"),
        "statistics": lambda: client.get_inference_statistics("nobody"),
        "repository": client.get_model_repository_index,
    }
    for name, call in calls.items():
        try:
            call()
        except InferenceServerException as error:
            seen["refusals"][name] = {
                "status": str(error.status()),
                "message": str(error.message()),
            }
    client.close()
    return seen


async def with_asyncio(address: str, pixels: np.ndarray) -> list[list[float]]:
    """The same with the client's form for asyncio, all rows under way at once."""
    async with aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(
            *(
                client.infer("small", [given("image", "UINT8", pixels[i : i + 1])])
                for i in range(len(pixels))
            )
        )
    return [rows(result)[0] for result in results]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
