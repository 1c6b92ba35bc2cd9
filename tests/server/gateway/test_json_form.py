"""Messages to and from JSON: the same as protobuf's own mapping, whatever the numbers."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from google.protobuf import json_format

from twinserve.errors import InvalidInput
from twinserve.server.gateway import json_form
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2 as gallery
from twinserve.v1 import shared_pb2 as shared


def embeddings(rows: int, rng: np.random.Generator) -> pb.EmbedResponse:
    reply = pb.EmbedResponse(model_version="twin@1", timing=shared.ServerTiming(batch_rows=3))
    for i in range(rows):
        result = reply.results.add(token_count=i)
        result.embedding.values.extend(rng.standard_normal(24).astype(np.float32) * 10.0 ** (i - 9))
        result.embedding.space_id = "space"
    reply.results.add().error.message = "no picture"
    reply.packed.scales.extend([0.1, 3e-42, 16777217])
    return reply


def test_a_message_goes_to_json_and_back_unchanged_by_both_readers(
    rng: np.random.Generator,
) -> None:
    reply = embeddings(20, rng)
    text = json_form.write(pb.EmbedResponse.FromString(reply.SerializeToString()))
    assert json_format.Parse(text, pb.EmbedResponse()) == reply
    assert json_form.read(text, pb.EmbedResponse) == reply
    theirs = json_format.MessageToJson(reply, preserving_proto_field_name=True)
    assert json_form.read(theirs.encode(), pb.EmbedResponse) == reply


def test_numbers_are_written_as_the_shortest_that_name_them_and_zeros_too() -> None:
    reply = pb.EmbedResponse(results=[pb.EmbedResult()])
    reply.results[0].embedding.values.extend([0.1, 0.0])
    tree = json.loads(json_form.write(reply))
    assert tree["results"] == [
        {"embedding": {"values": [0.1, 0.0], "spaceId": ""}, "tokenCount": 0, "truncated": False}
    ]


def test_numbers_that_json_has_not_are_written_as_protobuf_does() -> None:
    vector = shared.Embedding(values=[float("nan"), float("inf"), 1.5])
    assert json.loads(json_form.write(vector))["values"] == ["NaN", "Infinity", 1.5]


def test_numbers_are_read_in_every_form_that_the_mapping_allows() -> None:
    body = b'{"values": [1, 0.25, 1e3, "2.5", "NaN"], "space_id": "s"}'
    read = json_form.read(body, shared.Embedding)
    assert list(read.values)[:4] == [1, 0.25, 1000, 2.5]  # type: ignore[attr-defined]
    assert json_form.read(b'{"values": null}', shared.Embedding) == shared.Embedding()


def test_metadata_in_maps_and_times_are_read() -> None:
    body = """{"gallery": "g", "items": [{"item": {"id": "a", "metadata": {"values": {"integer":
        "12"}, "when": {"time": "2026-11-29T01:02:03Z"}}}, "input": {"embedding": {"values": [1]}}}
    ]}"""
    read = json_form.read(body.encode(), gallery.EnrollRequest)
    assert read == json_format.Parse(body, gallery.EnrollRequest())


@pytest.mark.parametrize("size", [0, 1, 2, 3, 196_607, 196_608, 196_609, 400_000])
def test_bytes_are_read_in_each_alphabet_of_base64_padded_or_not(
    size: int, rng: np.random.Generator
) -> None:
    data = rng.bytes(size)
    standard, urls = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    for text in (standard, urls, standard.rstrip("="), urls.rstrip("=")):
        body = json.dumps({"image": text}).encode()
        assert json_form.read(body, shared.Input) == shared.Input(image=data)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "it is empty"),
        (b"{", "no JSON"),
        (b"[]", "a JSON list"),
        (b'{"pairs": NaN}', "no JSON"),
        (b'{"modle": "m"}', 'no field named "modle"'),
        (b'{"pairs": [{"first": {"embedding": {"values": [null]}}}]}', "values"),
        (b'{"pairs": [{"first": {"embedding": {"values": 1}}}]}', "values"),
        (b'{"pairs": [{"first": {"embedding": {"values": [1' + b"0" * 400 + b"]}}}]}", ""),
        (b'{"pairs": [{"first": {"image": 1}}]}', "image"),
        (b'{"pairs": [{"first": {"image": "*"}}]}', "image is no base64"),
        (b'{"pairs": [{"first": {"image": "a\\nbc="}}]}', "image is no base64"),
        (b'{"pairs": [{"first": {"image": "\xc3\xa9"}}]}', "image is no base64"),
        (b'{"pairs": [{"first": {"text": "a", "image": "aa=="}}]}', "oneof"),
        (b'{"prior": "much"}', "prior"),
        (b'{"model": "\xff"}', "no JSON"),
        (b'{"model": "\\ud800"}', "no JSON"),
        (b'{"pairs": ' + b"[" * 2000 + b"]" * 2000 + b"}", "no JSON"),
    ],
)
def test_what_is_no_such_message_is_refused_with_a_sentence(body: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        json_form.read(body, pb.CompareRequest)
    assert says in raised.value.message
    assert "\n" not in raised.value.message


def test_a_message_in_a_message_in_a_message_and_so_on_is_refused() -> None:
    body = b'{"filter": ' + b'{"not": ' * 400 + b"{}" + b"}" * 401
    with pytest.raises(InvalidInput, match="SearchRequest"):
        json_form.read(body, gallery.SearchRequest)
