"""OpenAI's own package against a server: vectors, models, errors of its classes, its retries."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.gateway.asking import ask
from tests.server.gateway.served import Keys, Served, run
from twinserve.server.gateway import openai as form
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2 as shared

openai = pytest.importorskip("openai", reason="install twinserve[dev], which has openai")

TEXTS = ["word1 word2 word3", "word4 word1"]
PIXELS, _ = twins.classes_of_pixels(2, 1)


@pytest.fixture(scope="module")
def client(both: RunningServer) -> Iterator[Any]:
    url = f"http://127.0.0.1:{both.http_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none needed", max_retries=0) as made:
        yield made


def unit(rows: Any) -> Any:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(reply: Any) -> Any:
    assert [one.index for one in reply.data] == list(range(len(reply.data)))
    return np.array([one.embedding for one in reply.data])


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
def test_texts_come_back_as_their_vectors(client: Any, form: dict[str, Any]) -> None:
    # By default the package asks for base64, and unpacks it.
    reply = client.embeddings.create(model="texts", input=TEXTS, user="somebody", **form)
    np.testing.assert_allclose(vectors(reply), twins.embed_texts(TEXTS), atol=1e-5)
    assert reply.model == "texts@1"
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == 5 + 4
    one = client.embeddings.create(model="texts", input=TEXTS[1], **form)
    np.testing.assert_array_equal(vectors(one)[0], vectors(reply)[1])


def test_base64_is_the_same_float32_as_numbers(client: Any, both: RunningServer) -> None:
    asked = {"model": "texts", "input": TEXTS}
    numbers = ask(both, "/v1/embeddings", asked).tree["data"]
    packed = ask(both, "/v1/embeddings", {**asked, "encoding_format": "base64"}).tree["data"]
    for a, b in zip(numbers, packed, strict=True):
        raw = np.frombuffer(base64.b64decode(b["embedding"]), "<f4")
        np.testing.assert_array_equal(np.array(a["embedding"], np.float32), raw)


def test_dimensions_are_the_twins_truncations(client: Any) -> None:
    reply = client.embeddings.create(model="texts", input=TEXTS, dimensions=twins.TRUNCATION)
    wanted = unit(twins.embed_texts(TEXTS)[:, : twins.TRUNCATION])
    np.testing.assert_allclose(vectors(reply), wanted, atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="8") as raised:
        client.embeddings.create(model="texts", input=TEXTS, dimensions=7)
    assert raised.value.param == "dimensions"


def test_a_prompt_of_the_models_goes_before_each_text(client: Any) -> None:
    reply = client.embeddings.create(
        model="texts", input=TEXTS, extra_body={"prompt": "query"}, dimensions=16
    )
    wanted = twins.embed_texts(TEXTS, twins.PROMPTS["query"])
    np.testing.assert_allclose(vectors(reply), wanted, atol=1e-5)


def test_pictures_are_sent_as_data_urls(client: Any) -> None:
    urls = [f"data:image/png;base64,{base64.b64encode(wire.png(one)).decode()}" for one in PIXELS]
    reply = client.embeddings.create(model="pictures", input=urls)
    np.testing.assert_allclose(vectors(reply), twins.embed_pixels(PIXELS), atol=1e-4)
    assert reply.usage.total_tokens == 0


def test_models_are_listed_and_found_by_name(client: Any) -> None:
    assert [one.id for one in client.models.list()] == ["pictures", "texts"]
    assert client.models.retrieve("texts@1").id == "texts@1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("asked", "error", "code", "param"),
    [
        ({"model": "nobody", "input": "a"}, "NotFoundError", "model_not_found", "model"),
        ({"input": ["a", ""]}, "BadRequestError", "empty_input", "input[1].text"),
        ({"input": []}, "BadRequestError", "empty_input", "input"),
        ({"input": [[1, 2]]}, "BadRequestError", "invalid_input", "input"),
        ({"input": [7]}, "BadRequestError", "invalid_input", "input"),
        ({"input": "a", "dimensions": 0}, "BadRequestError", "invalid_input", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "BadRequestError", "invalid_input", None),
        ({"input": "a", "extra_body": {"dimension": 8}}, "BadRequestError", "invalid_input", None),
        ({"model": "pictures", "input": "a"}, "BadRequestError", "wrong_modality", None),
        ({"input": "data:image/png,raw"}, "BadRequestError", "invalid_input", "input"),
        ({"input": "data:image/png;base64,*"}, "BadRequestError", "invalid_input", "input"),
        ({"input": ["a"] * 1025}, "BadRequestError", "limit_exceeded", "input"),
        ({"input": "a" * (1 << 20)}, "APIStatusError", "limit_exceeded", None),
    ],
)
def test_errors_are_the_packages_own(
    client: Any, asked: dict[str, Any], error: str, code: str, param: str | None
) -> None:
    with pytest.raises(getattr(openai, error)) as raised:
        client.embeddings.create(**{"model": "texts", **asked})
    assert raised.value.code == code
    assert raised.value.type == "invalid_request_error"
    if param is not None:
        assert raised.value.param == param


def test_what_openai_has_beside_is_answered_in_its_form(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings"):
        client.chat.completions.create(model="texts", messages=[])


def test_what_a_form_of_any_web_page_could_send_is_not_taken(both: RunningServer) -> None:
    body = {"model": "texts", "input": "a"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = ask(both, "/v1/embeddings", body, kind=kind)
        assert answer.status == 415
        assert "application/json" in answer.tree["error"]["message"]
    assert ask(both, "/v1/embeddings", None, "GET").status == 404


def test_the_package_comes_again_after_the_time_that_a_full_server_names() -> None:
    door = Keys()

    def create(url: str, key: str) -> Any:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=1) as made:
            return made.embeddings.create(model="m", input="a")

    async def test(served: Served) -> None:
        with pytest.raises(openai.RateLimitError, match="come back later"):
            await asyncio.to_thread(create, served.url, "busy")
        assert len(door.asked) == 2  # it was asked again, and refused again
        for key, error in (
            ("low", openai.PermissionDeniedError),
            ("bad", openai.AuthenticationError),
        ):
            with pytest.raises(error):
                await asyncio.to_thread(create, served.url, key)
        served.front.calls = 2
        waiting = asyncio.create_task(asyncio.to_thread(create, served.url, "good"))
        await asyncio.sleep(0.1)
        served.front.calls = 0
        assert (await waiting).object == "list"

    run(test, door=door)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", ""),
        (b'{"input": 1.5}', "input"),
        (b'{"input": [null]}', "input[0]"),
        (b'{"input": "a", "model": 1}', "model"),
        (b'{"input": "a", "dimensions": true}', "dimensions"),
        (b'{"input": "a", "dimensions": 1e99}', "dimensions"),
        (b'{"input": "a", "prompt": []}', "prompt"),
    ],
)
def test_requests_that_no_package_would_make_are_refused(body: bytes, field: str) -> None:
    with pytest.raises(form.InvalidInput) as raised:
        form.read(body)
    assert raised.value.field == field


def test_a_field_that_is_null_is_as_if_it_were_left_out() -> None:
    fields = {"model": None, "input": "a", "dimensions": None, "encoding_format": None}
    asked = form.read(json.dumps(fields).encode())
    wanted = pb.EmbedRequest(inputs=[shared.Input(text="a")], atomic=True)
    wanted.options.encoding = shared.ENCODING_FLOAT32
    assert (asked.request, asked.as_base64) == (wanted, False)
