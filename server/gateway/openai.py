"""OpenAI's API for embeddings, so that its SDKs and what builds on them need but another URL.

    POST /v1/embeddings     GET /v1/models     GET /v1/models/NAME

A call becomes an Embed, with all that holds for it, and an error OpenAI's JSON, with the status by
which its SDKs choose their exception and whether to retry. Beyond OpenAI: a text that is a `data:`
URL of a picture is that picture, and `prompt` names one of the model's prompts. Source: OpenAI's
API reference, platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from twinserve.errors import InvalidInput, NotBuilt, NotFound
from twinserve.server.gateway import json_form
from twinserve.server.gateway.body import Reply
from twinserve.server.gateway.calls import Call, Calls
from twinserve.server.gateway.connect import JSON, http_status, retry_headers
from twinserve.server.gateway.methods import Methods
from twinserve.server.gateway.refused import Refused, field_of, reason_of, refused
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import model_service_pb2 as model_pb
from twinserve.v1 import shared_pb2 as shared

EMBED = "/twinserve.v1.EmbeddingService/Embed"
LIST_MODELS = "/twinserve.v1.ModelService/ListModels"
GET_MODEL = "/twinserve.v1.ModelService/GetModel"
_FIELDS = ("model", "input", "encoding_format", "dimensions", "user", "prompt")
_FORMATS = ("float", "base64")
_PICTURE = re.compile(r"data:image/[\w.+-]+;base64,")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MOST_MODELS = 1000  # of one page, the contract's own bound


@dataclass(frozen=True)
class Asked:
    """What a request for embeddings asks, and how the vectors are to be written."""

    request: pb.EmbedRequest
    as_base64: bool


class OpenAI:
    """Answers /v1/embeddings and /v1/models.

    Args:
        calls: that each request becomes one of.
        methods: of all services.
    """

    def __init__(self, calls: Calls, methods: Methods) -> None:
        self._calls = calls
        self._embed = methods.unary[EMBED]
        self._list_models = methods.unary[LIST_MODELS]
        self._get_model = methods.unary[GET_MODEL]

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; what OpenAI has beside them is answered in its form too."""
        return [
            web.post("/v1/embeddings", self._answer_embeddings),
            web.get("/v1/models", self._answer_models),
            web.get("/v1/models/{name}", self._answer_model),
            web.route("*", "/v1/{rest:.*}", self._answer_rest),
        ]

    async def _answer_embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.take(request, EMBED, self._embeddings, error_reply)

    async def _answer_models(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.take(request, LIST_MODELS, self._models, error_reply)

    async def _answer_model(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.take(request, GET_MODEL, self._model, error_reply)

    async def _answer_rest(self, request: web.Request) -> web.StreamResponse:
        return await self._calls.take(request, LIST_MODELS, _lacking, error_reply, known=False)

    async def _embeddings(self, call: Call) -> Reply:
        kind = call.request.content_type
        if kind != JSON:
            raise refused(NotBuilt(f"the body is {kind!r:.80}; send {JSON}, and say so"), 415)
        asked = await call.message(read)
        found = await call.run(self._embed, asked.request)
        return Reply(200, await call.away(len(found), lambda: write(found, asked.as_base64)))

    async def _models(self, call: Call) -> Reply:
        # Every name once, as a client may ask for it: names, then the aliases that are none.
        models: list[Any] = []
        request = model_pb.ListModelsRequest(page_size=_MOST_MODELS)
        while True:
            reply = model_pb.ListModelsResponse.FromString(
                await call.run(self._list_models, request)
            )
            models += reply.models
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        names = [model.name for model in models]
        names += [alias for model in models for alias in model.aliases]
        found = [_described(name) for name in dict.fromkeys(names)]
        return Reply(200, orjson.dumps({"object": "list", "data": found}))

    async def _model(self, call: Call) -> Reply:
        name = call.request.match_info["name"]
        await call.run(self._get_model, model_pb.GetModelRequest(name=name))
        return Reply(200, orjson.dumps(_described(name)))


async def _lacking(call: Call) -> Reply:
    request = call.request
    raise NotFound(
        f"{request.method} {request.path:.200} is not here; of OpenAI's API this server has "
        "POST /v1/embeddings and GET /v1/models"
    )


def _described(name: str) -> dict[str, Any]:
    # No twin says when it was made, and OpenAI's form wants a number.
    return {"id": name, "object": "model", "created": 0, "owned_by": "twinserve"}


def read(data: bytes) -> Asked:
    """Read a request for embeddings.

    Raises:
        InvalidInput: what is wrong with it, with the field's path.
    """
    tree = json_form.tree_of(data)
    for name in tree:
        if name not in _FIELDS:
            raise InvalidInput(
                f"the field {name!r:.80} is unknown; give {', '.join(_FIELDS)}", field=name
            )
    prompt = _text(tree, "prompt")
    encoding = _text(tree, "encoding_format")
    if encoding is not None and encoding not in _FORMATS:
        raise InvalidInput(
            f"encoding_format is {encoding!r:.80}; give float or base64", field="encoding_format"
        )
    dimensions = tree.get("dimensions")
    if dimensions is not None and (
        type(dimensions) is not int or not 0 < dimensions < 1 << 31  # a bool is an int to Python
    ):
        raise InvalidInput(
            f"dimensions is {dimensions!r:.80}; give one of the model's truncations, a whole "
            "number, or leave it out",
            field="dimensions",
        )
    request = pb.EmbedRequest(
        model=_text(tree, "model") or "",
        inputs=[_input(one, field, prompt) for field, one in _inputs(tree)],
        options=pb.EmbedOptions(encoding=shared.ENCODING_FLOAT32, dimensions=dimensions),
        atomic=True,  # OpenAI's reply has no place for the error of one input
    )
    return Asked(request, encoding == "base64")


def _text(tree: dict[str, Any], name: str) -> str | None:
    value = tree.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidInput(f"{name} is a JSON {type(value).__name__}; give a string", field=name)
    return value


def _inputs(tree: dict[str, Any]) -> list[tuple[str, str]]:
    value = tree.get("input")
    if isinstance(value, str):
        return [("input", value)]
    if not isinstance(value, list):
        raise InvalidInput("input is missing; give a string, or a list of them", field="input")
    for i, one in enumerate(value):
        if isinstance(one, int | list):
            raise InvalidInput(
                "input holds token ids, which are those of OpenAI's models and mean nothing to "
                "this one; send strings (LangChain: check_embedding_ctx_length=False)",
                field="input",
            )
        if not isinstance(one, str):
            raise InvalidInput(
                f"input[{i}] is a JSON {type(one).__name__}; give a string", field=f"input[{i}]"
            )
    return [(f"input[{i}]", one) for i, one in enumerate(value)]


def _input(text: str, field: str, prompt: str | None) -> shared.Input:
    if text.startswith("data:image/"):
        head = _PICTURE.match(text)
        if head is None:
            raise InvalidInput(
                f"{field} is a data: URL in another form than data:image/png;base64,…", field=field
            )
        try:
            return shared.Input(image=json_form.bytes_of(text[head.end() :]))
        except ValueError as error:
            raise InvalidInput(
                f"{field} is a data: URL whose base64 is damaged: {error}", field=field
            ) from None
    return shared.Input(text=text, prompt=prompt)


def write(data: bytes, as_base64: bool) -> bytes:
    """Write embeddings.

    Args:
        data: an EmbedResponse whose packed block is float32.
        as_base64: whether as base64 of float32, little-endian, in place of numbers.
    """
    reply = pb.EmbedResponse.FromString(data)
    rows: list[Any]
    if as_base64:
        block, size = reply.packed.data, 4 * reply.packed.dimension
        rows = [base64.b64encode(block[i : i + size]).decode() for i in range(0, len(block), size)]
    else:
        vectors = np.frombuffer(reply.packed.data, "<f4").astype(np.float32)
        rows = list(vectors.reshape(-1, reply.packed.dimension))
    tokens = sum(result.token_count for result in reply.results)
    found = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)
        ],
        "model": reply.model_version,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)


def error_reply(refusal: Refused) -> Reply:
    """Write a refusal as OpenAI does."""
    status = refusal.status
    http = http_status(refusal)
    kind = _TYPES.get(http, "invalid_request_error" if http < 500 else "server_error")
    field = field_of(status).removeprefix("options.")
    error = {
        "message": status.message,
        "type": kind,
        "param": re.sub(r"^inputs\b", "input", field) or None,
        "code": reason_of(status).lower() or None,
    }
    return Reply(http, orjson.dumps({"error": error}), JSON, retry_headers(status))
