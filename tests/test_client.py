"""The Python client against a server that answers as it is told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from tests.fake_server import FakeServer, status
from twinserve import errors
from twinserve.client import Client, Encoding, EnrollItem, Health, Text, Vector
from twinserve.decision import Outcome
from twinserve.distance import Metric
from twinserve.messages import InputLike
from twinserve.v1 import (
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_pb2,
    model_service_pb2,
    shared_pb2,
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target, timeout=5.0) as made:
        yield made


def embedding(*values: float) -> embedding_service_pb2.EmbedResult:
    return embedding_service_pb2.EmbedResult(embedding=shared_pb2.Embedding(values=values))


def packed(
    encoding: shared_pb2.Encoding.ValueType,
    dimension: int,
    data: bytes,
    scales: Sequence[float] = (),
) -> embedding_service_pb2.EmbedResponse:
    """Return a reply of two inputs in one block, of which the second failed."""
    return embedding_service_pb2.EmbedResponse(
        space_id="sp_9",
        results=[
            embedding_service_pb2.EmbedResult(),
            embedding_service_pb2.EmbedResult(error=BROKEN),
        ],
        packed=embedding_service_pb2.Packed(
            encoding=encoding, dimension=dimension, data=data, scales=scales
        ),
    )


def enrolled(id: str = "a") -> gallery_service_pb2.EnrollResponse:
    result = gallery_service_pb2.EnrollResult(
        enrolled=gallery_service_pb2.Enrolled(id=id, change=gallery_service_pb2.CHANGE_CREATED)
    )
    return gallery_service_pb2.EnrollResponse(results=[result], consistency_token="t1")


BROKEN = status(
    grpc.StatusCode.INVALID_ARGUMENT,
    "the image cannot be decoded; send a whole file",
    reason="IMAGE_UNDECODABLE",
    field="inputs[1].image",
)
UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, "draining", reason="NOT_SERVING")


class TestInputs:
    def test_each_kind_of_input_becomes_its_own_kind_of_message(
        self, server: FakeServer, client: Client, tmp_path: Path
    ) -> None:
        server.on("Embed", embedding_service_pb2.EmbedResponse(results=[embedding(1.0)]))
        picture = tmp_path / "a.png"
        picture.write_bytes(b"picture")
        client.embed(
            [
                b"bytes",
                picture,
                "a text",
                np.array([[1, 2], [3, 4]], dtype=np.uint8),
                Vector(np.array([0.5, -1.0], dtype=np.float32), "sp_1"),
            ]
        )
        (request,) = server.asked("Embed")
        first, second, text, tensor, vector = request.inputs
        assert (first.image, second.image, text.text) == (b"bytes", b"picture", "a text")
        assert list(tensor.tensor.shape) == [2, 2]
        assert tensor.tensor.data_type == shared_pb2.DATA_TYPE_UINT8
        assert tensor.tensor.data == bytes([1, 2, 3, 4])
        assert list(vector.embedding.values) == [0.5, -1.0]
        assert vector.embedding.space_id == "sp_1"

    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">i8"])
    def test_a_tensor_travels_little_endian_and_row_major_whatever_its_memory(
        self, server: FakeServer, client: Client, dtype: str
    ) -> None:
        server.on("Embed", embedding_service_pb2.EmbedResponse(results=[embedding(1.0)]))
        array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
        client.embed([array])
        sent = server.asked("Embed")[0].inputs[0].tensor
        little = np.dtype(dtype).newbyteorder("<")
        assert np.frombuffer(sent.data, little).tolist() == [0, 1, 2, 3, 4, 5]

    def test_an_array_of_another_element_type_is_refused_before_anything_is_sent(
        self, server: FakeServer, client: Client
    ) -> None:
        with pytest.raises(errors.WrongShape, match="float64"):
            client.embed([np.zeros(3)])
        assert server.requests == []

    def test_something_that_is_no_input_is_refused(self, client: Client) -> None:
        with pytest.raises(errors.InvalidInput, match="int is no input"):
            client.embed([3])  # type: ignore[list-item]

    def test_two_rules_at_once_are_refused(self, client: Client) -> None:
        with pytest.raises(errors.InvalidInput, match="false_accept_rate and threshold"):
            client.compare([("a", "b")], far=0.1, threshold=0.5)

    def test_a_datetime_without_a_time_zone_is_refused(self, client: Client) -> None:
        item = EnrollItem("a", metadata={"seen": datetime(2026, 1, 1)})
        with pytest.raises(errors.InvalidInput, match="time zone"):
            client.enroll("people", [item])

    def test_a_prompt_goes_with_every_text_and_passes_by_ready_vectors(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Embed", embedding_service_pb2.EmbedResponse())
        vector = Vector(np.zeros(2, dtype=np.float32), "sp_1")
        own = Text("own", prompt="passage")
        client.embed(["plain", own, Text("none", prompt=""), vector], prompt="query")
        client.embed(["plain", own])
        first, second = server.asked("Embed")
        assert [one.prompt for one in first.inputs] == ["query", "passage", "", ""]
        assert [one.HasField("prompt") for one in first.inputs] == [True, True, True, False]
        assert [one.HasField("prompt") for one in second.inputs] == [False, True]
        assert [one.text for one in second.inputs] == ["plain", "own"]

    def test_every_call_that_takes_texts_takes_a_prompt(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Compare", embedding_service_pb2.CompareResponse())
        server.on("Enroll", enrolled())
        server.on("Search", gallery_service_pb2.SearchResponse())
        server.on("Verify", gallery_service_pb2.VerifyResponse())
        client.compare([("a", Text("b", "passage"))], prompt="query")
        client.enroll("g", [EnrollItem("a"), EnrollItem(None, id="b")], prompt="query")
        client.search("g", ["a"], prompt="query")
        client.verify("g", "s", "a", prompt="query")
        (pair,) = server.asked("Compare")[0].pairs
        assert (pair.first.prompt, pair.second.prompt) == ("query", "passage")
        first, second = server.asked("Enroll")[0].items
        assert first.input.prompt == "query"
        assert not second.HasField("input")
        assert server.asked("Search")[0].probes[0].prompt == "query"
        assert server.asked("Verify")[0].probe.prompt == "query"

    @pytest.mark.parametrize("picture", [b"picture", np.zeros(3, dtype=np.float32)])
    def test_a_prompt_for_anything_but_a_text_is_refused_before_it_is_sent(
        self, server: FakeServer, client: Client, picture: InputLike
    ) -> None:
        with pytest.raises(errors.InvalidInput, match="only texts take one"):
            client.embed([picture], prompt="")
        assert server.requests == []

    def test_a_text_that_is_no_unicode_is_refused_before_it_is_sent(
        self, server: FakeServer, client: Client
    ) -> None:
        with pytest.raises(errors.InvalidInput, match="surrogate"):
            client.embed(["\ud800"])
        assert server.requests == []

    def test_whether_long_texts_are_cut_is_said_only_when_asked(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Embed", embedding_service_pb2.EmbedResponse())
        client.embed(["a"])
        client.embed(["a"], truncate=False)
        client.embed(["a"], truncate=True, dimensions=8)
        asked = server.asked("Embed")
        assert [one.options.HasField("truncate") for one in asked] == [False, True, True]
        assert [one.options.truncate for one in asked] == [False, False, True]

    def test_an_encoding_is_asked_for_only_when_given(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Embed", embedding_service_pb2.EmbedResponse())
        client.embed(["a"])
        client.embed(["a"], encoding="float16")
        client.embed(["a"], encoding="binary", dimensions=8)
        asked = server.asked("Embed")
        assert [one.HasField("options") for one in asked] == [False, True, True]
        assert [one.options.encoding for one in asked[1:]] == [
            shared_pb2.ENCODING_FLOAT16,
            shared_pb2.ENCODING_BINARY,
        ]
        assert asked[2].options.dimensions == 8

    def test_an_unknown_encoding_is_refused_with_those_there_are(
        self, server: FakeServer, client: Client
    ) -> None:
        word: Any = "float8"
        for call in (client.embed, client.embed_stream):
            with pytest.raises(errors.InvalidInput, match="'float8'; give float32, float16, int8"):
                call(["a"], encoding=word)
        assert server.requests == []


class TestResults:
    def test_embeddings_are_a_float32_matrix_that_can_be_sent_back(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "Embed",
            embedding_service_pb2.EmbedResponse(
                model_version="m@1",
                space_id="sp_9",
                results=[embedding(1.0, 2.0), embedding(3.0, 4.0)],
                timing=shared_pb2.ServerTiming(
                    inference_us=7,
                    batch_rows=2,
                    dispatch_reason=shared_pb2.DISPATCH_REASON_RUNNER_FREE,
                ),
            ),
        )
        embeddings = client.embed(["a", "b"], "m", 2)
        assert embeddings.vectors.dtype == np.float32
        assert embeddings.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert (embeddings.space_id, embeddings.model_version) == ("sp_9", "m@1")
        assert (embeddings.timing.inference_us, embeddings.timing.batch_rows) == (7, 2)
        assert embeddings.timing.dispatch_reason == "runner_free"
        assert server.asked("Embed")[0].options.dimensions == 2
        assert [v.space_id for v in embeddings] == ["sp_9", "sp_9"]

    def test_a_failed_input_leaves_nan_and_its_error_in_its_place(
        self, server: FakeServer, client: Client
    ) -> None:
        failed = embedding_service_pb2.EmbedResult(error=BROKEN)
        server.on("Embed", embedding_service_pb2.EmbedResponse(results=[embedding(1.0), failed]))
        embeddings = client.embed(["a", b"x"])
        assert np.isnan(embeddings.vectors[1]).all()
        assert embeddings.errors[0] is None
        assert isinstance(embeddings.errors[1], errors.UndecodableImage)
        assert embeddings.errors[1].field == "inputs[1].image"
        with pytest.raises(errors.UndecodableImage):
            embeddings[1]
        with pytest.raises(errors.UndecodableImage):
            client.embed(["a", b"x"], raise_for_errors=True)

    @pytest.mark.parametrize(
        ("encoding", "number", "data", "scales"),
        [
            ("float32", shared_pb2.ENCODING_FLOAT32, np.array([[1, -2], [0, 0]], "<f4"), []),
            ("float16", shared_pb2.ENCODING_FLOAT16, np.array([[1, -2], [0, 0]], "<f2"), []),
            ("int8", shared_pb2.ENCODING_INT8, np.array([[64, -128], [0, 0]], "i1"), [2**-6, 1.0]),
        ],
    )
    def test_packed_vectors_are_float32_again_and_failed_rows_nan(
        self,
        server: FakeServer,
        client: Client,
        encoding: Encoding,
        number: shared_pb2.Encoding.ValueType,
        data: NDArray[Any],
        scales: list[float],
    ) -> None:
        server.on("Embed", packed(number, 2, data.tobytes(), scales))
        embeddings = client.embed(["a", b"x"], encoding=encoding)
        assert embeddings.vectors.dtype == np.float32
        assert embeddings.vectors[0].tolist() == [1.0, -2.0]
        assert np.isnan(embeddings.vectors[1]).all()
        assert isinstance(embeddings.errors[1], errors.UndecodableImage)
        sent_back = embeddings[0]
        assert (sent_back.values.tolist(), sent_back.space_id) == ([1.0, -2.0], "sp_9")
        client.embed([sent_back])

    def test_binary_vectors_are_bits_by_coordinate_that_no_call_takes(
        self, server: FakeServer, client: Client
    ) -> None:
        first = bytes([0b10000001, 0b01000000])  # ten coordinates: the first, eighth and tenth
        server.on("Embed", packed(shared_pb2.ENCODING_BINARY, 10, first + bytes(2)))
        embeddings = client.embed(["a", b"x"], encoding="binary")
        assert embeddings.vectors.dtype == np.bool_
        assert np.flatnonzero(embeddings.vectors[0]).tolist() == [0, 7, 9]
        assert not embeddings.vectors[1].any()
        assert np.packbits(embeddings.vectors, axis=1)[0].tobytes() == first
        with pytest.raises(errors.UndecodableImage):
            embeddings[1]
        with pytest.raises(errors.InvalidInput, match="Hamming distance"):
            client.search("people", [embeddings[0]])

    @pytest.mark.parametrize(
        "reply",
        [
            (shared_pb2.ENCODING_FLOAT32, 2, bytes(15)),
            (shared_pb2.ENCODING_FLOAT16, 2, bytes(10)),
            (shared_pb2.ENCODING_INT8, 2, bytes(4), [1.0]),
            (shared_pb2.ENCODING_BINARY, 9, bytes(3)),
            (99, 2, bytes(4)),
        ],
    )
    def test_a_block_that_cannot_hold_its_rows_is_not_read_as_vectors(
        self, server: FakeServer, client: Client, reply: Any
    ) -> None:
        server.on("Embed", packed(*reply))
        with pytest.raises(errors.InternalFault, match="cannot hold 2 rows"):
            client.embed(["a", b"x"], encoding="int8")

    def test_a_comparison_tells_absent_from_zero(self, server: FakeServer, client: Client) -> None:
        calibrated = embedding_service_pb2.Comparison(
            score=shared_pb2.Score(distance=0.25, log_likelihood_ratio=0.0, probability=0.5),
            decision=shared_pb2.Decision(
                outcome=shared_pb2.OUTCOME_MATCH,
                threshold=0.3,
                false_accept_rate=0.0,
                false_accept_rate_upper=0.01,
            ),
        )
        bare = embedding_service_pb2.Comparison(
            score=shared_pb2.Score(distance=0.5),
            decision=shared_pb2.Decision(outcome=shared_pb2.OUTCOME_NOT_CALIBRATED),
        )
        server.on(
            "Compare",
            embedding_service_pb2.CompareResponse(
                results=[
                    embedding_service_pb2.CompareResult(comparison=calibrated),
                    embedding_service_pb2.CompareResult(comparison=bare),
                    embedding_service_pb2.CompareResult(error=BROKEN),
                ]
            ),
        )
        results = client.compare([("a", "b")] * 3, far=0.01, prior=0.2)
        first, second, third = results
        assert first.match is True
        assert (first.log_likelihood_ratio, first.false_accept_rate) == (0.0, 0.0)
        assert second.match is None
        assert second.outcome is Outcome.NOT_CALIBRATED
        assert (second.threshold, second.probability, second.false_accept_rate) == (None,) * 3
        assert isinstance(third, errors.UndecodableImage)
        with pytest.raises(errors.UndecodableImage):
            results.checked()
        (request, *_) = server.asked("Compare")
        assert request.rule.false_accept_rate == 0.01
        assert request.prior == 0.2

    def test_no_rule_and_no_prior_are_absent_and_not_zero(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Compare", embedding_service_pb2.CompareResponse())
        client.compare([("a", "b")])
        (request,) = server.asked("Compare")
        assert not request.HasField("rule")
        assert not request.HasField("prior")

    def test_an_outcome_of_a_newer_server_is_never_read_as_a_match(
        self, server: FakeServer, client: Client
    ) -> None:
        comparison = embedding_service_pb2.Comparison(decision=shared_pb2.Decision(outcome=17))
        result = embedding_service_pb2.CompareResult(comparison=comparison)
        server.on("Compare", embedding_service_pb2.CompareResponse(results=[result]))
        (found,) = client.compare([("a", "b")]).checked()
        assert found.match is None

    def test_search_gives_hits_by_subject_nearest_first(
        self, server: FakeServer, client: Client
    ) -> None:
        def hit(id: str, subject: str, distance: float, match: bool) -> gallery_service_pb2.Hit:
            return gallery_service_pb2.Hit(
                item=shared_pb2.Item(id=id, subject=subject),
                score=shared_pb2.Score(distance=distance, probability=0.9),
                match=match,
            )

        hits = gallery_service_pb2.Hits(
            hits=[hit("i1", "alice", 0.1, True), hit("i2", "", 0.7, False)],
            outcome=shared_pb2.OUTCOME_MATCH,
            threshold=0.4,
            expected_false_matches=0.02,
            exact=True,
            false_positive_identification_rate=0.008,
            false_positive_identification_rate_upper=0.011,
            evidence=shared_pb2.EVIDENCE_GALLERY,
        )
        server.on(
            "Search",
            gallery_service_pb2.SearchResponse(
                results=[gallery_service_pb2.SearchResult(hits=hits)], consistency_token="t7"
            ),
        )
        results = client.search(
            "people", ["x"], 2, fpir=0.01, filter={"site": "north", "age": [1, 2]}, ef=99, mean_of=3
        )
        (found,) = results.checked()
        assert [(h.subject, h.distance, h.match) for h in found] == [
            ("alice", 0.1, True),
            ("i2", 0.7, False),
        ]
        assert (found.match, found.threshold, found.expected_false_matches) == (True, 0.4, 0.02)
        assert found.false_positive_identification_rate == 0.008
        assert found.false_positive_identification_rate_upper == 0.011
        assert found.evidence == "gallery"
        assert results.consistency_token == "t7"
        (request,) = server.asked("Search")
        assert request.rule.false_positive_identification_rate == 0.01
        assert (request.top_k, request.ef, request.mean_of) == (2, 99, 3)
        site, age = request.filter.all.filters
        assert site.clause.equals.text == "north"
        assert [v.integer for v in age.clause.any_of.values] == [1, 2]

    def test_rates_that_the_server_does_not_know_are_none(
        self, server: FakeServer, client: Client
    ) -> None:
        hits = gallery_service_pb2.Hits(outcome=shared_pb2.OUTCOME_NOT_CALIBRATED)
        result = gallery_service_pb2.SearchResult(hits=hits)
        server.on("Search", gallery_service_pb2.SearchResponse(results=[result]))
        (found,) = client.search("people", ["x"]).checked()
        assert found.false_positive_identification_rate is None
        assert found.false_positive_identification_rate_upper is None
        assert (found.threshold, found.evidence) == (None, "")

    def test_verify_names_the_item_that_decided(self, server: FakeServer, client: Client) -> None:
        server.on(
            "Verify",
            gallery_service_pb2.VerifyResponse(
                score=shared_pb2.Score(distance=0.6),
                decision=shared_pb2.Decision(outcome=shared_pb2.OUTCOME_NO_MATCH, threshold=0.4),
                item_id="i3",
                items_compared=5,
            ),
        )
        verification = client.verify("people", "alice", b"x", far=0.001, mean_of=5)
        assert verification.match is False
        assert (verification.item_id, verification.items_compared) == ("i3", 5)
        assert server.asked("Verify")[0].subject == "alice"
        assert server.asked("Verify")[0].mean_of == 5

    def test_metadata_keeps_its_types_there_and_back(
        self, server: FakeServer, client: Client
    ) -> None:
        metadata = {
            "name": "alice",
            "age": 41,
            "height": 1.7,
            "known": True,
            "seen": datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        }
        server.on("Enroll", enrolled())
        client.enroll("people", [EnrollItem(b"x", id="a", metadata=metadata)])
        sent = server.asked("Enroll")[0].items[0].item
        server.on("GetItem", gallery_service_pb2.GetItemResponse(item=sent))
        back = client.get_item("people", "a").metadata
        assert back == metadata
        assert [type(back[key]) for key in metadata] == [str, int, float, bool, datetime]

    def test_an_item_without_input_changes_subject_and_metadata_only(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Enroll", enrolled())
        client.enroll("people", [EnrollItem(None, id="a", subject="bob")])
        (item,) = server.asked("Enroll")[0].items
        assert not item.HasField("input")
        assert item.item.subject == "bob"

    def test_get_item_returns_the_vector_when_asked(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "GetItem",
            gallery_service_pb2.GetItemResponse(
                item=shared_pb2.Item(id="a"),
                embedding=shared_pb2.Embedding(values=[1.0, 2.0], space_id="sp_1"),
            ),
        )
        vector = client.get_item("people", "a", with_embedding=True).vector
        assert vector is not None
        assert vector.values.tolist() == [1.0, 2.0]
        assert vector.space_id == "sp_1"

    def test_a_gallery_is_described_in_words(self, server: FakeServer, client: Client) -> None:
        def echo(
            request: gallery_service_pb2.CreateGalleryRequest,
        ) -> gallery_service_pb2.CreateGalleryResponse:
            return gallery_service_pb2.CreateGalleryResponse(gallery=request.gallery)

        server.on("CreateGallery", echo)
        gallery = client.create_gallery(
            "people",
            dimension=64,
            metric="cosine",
            metadata_keys={"site": "text", "age": "integer"},
        )
        assert gallery.dimension == 64
        assert gallery.metric is Metric.COSINE
        assert gallery.metadata_keys == {"site": "text", "age": "integer"}
        assert gallery.create_time is None

    @pytest.mark.parametrize("word", ["colour", "unspecified"])
    def test_an_unknown_type_of_metadata_key_is_refused(self, client: Client, word: str) -> None:
        with pytest.raises(errors.InvalidInput, match="no type of metadata key 'site'"):
            client.create_gallery("people", metadata_keys={"site": word})

    def test_an_unknown_metric_is_refused(self, client: Client) -> None:
        with pytest.raises(errors.InvalidInput, match="euclidean or cosine"):
            client.create_gallery("people", metric="manhattan")

    def test_remove_takes_exactly_one_target(self, server: FakeServer, client: Client) -> None:
        with pytest.raises(errors.InvalidInput, match="exactly one"):
            client.remove("people")
        with pytest.raises(errors.InvalidInput, match="exactly one"):
            client.remove("people", ["a"], subject="alice")
        server.on("Remove", gallery_service_pb2.RemoveResponse(removed=2, consistency_token="t"))
        assert client.remove("people", subject="alice").removed == 2
        assert server.asked("Remove")[0].WhichOneof("target") == "subject"


class TestPages:
    def test_list_items_follows_the_tokens_to_the_last_page(
        self, server: FakeServer, client: Client
    ) -> None:
        def page(
            request: gallery_service_pb2.ListItemsRequest,
        ) -> gallery_service_pb2.ListItemsResponse:
            start = int(request.page_token or 0)
            items = [shared_pb2.Item(id=f"{i:02}") for i in range(start, min(start + 2, 5))]
            token = str(start + 2) if start + 2 < 5 else ""
            return gallery_service_pb2.ListItemsResponse(items=items, next_page_token=token)

        server.on("ListItems", page)
        found = [item.id for item in client.list_items("people", full=True, page_size=2)]
        assert found == ["00", "01", "02", "03", "04"]
        asked = server.asked("ListItems")
        assert [r.page_token for r in asked] == ["", "2", "4"]
        assert {r.view for r in asked} == {gallery_service_pb2.ITEM_VIEW_FULL}

    def test_an_empty_page_with_a_token_is_not_the_end(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "ListGalleries",
            gallery_service_pb2.ListGalleriesResponse(next_page_token="more"),
            gallery_service_pb2.ListGalleriesResponse(galleries=[gallery_pb2.Gallery(name="z")]),
        )
        assert [gallery.name for gallery in client.list_galleries()] == ["z"]

    def test_models_come_page_by_page_too(self, server: FakeServer, client: Client) -> None:
        def page(name: str, token: str) -> model_service_pb2.ListModelsResponse:
            models = [model_pb2.Model(name=name, metric=shared_pb2.METRIC_EUCLIDEAN)]
            return model_service_pb2.ListModelsResponse(models=models, next_page_token=token)

        server.on("ListModels", page("a", "x"), page("b", ""))
        assert [(m.name, m.metric) for m in client.models()] == [
            ("a", Metric.EUCLIDEAN),
            ("b", Metric.EUCLIDEAN),
        ]


class TestErrors:
    @pytest.mark.parametrize(
        "kind",
        [
            errors.UndecodableImage,
            errors.SpaceMismatch,
            errors.GalleryNotFound,
            errors.SubjectNotFound,
            errors.DeadlineExceeded,
            errors.NotBuilt,
            errors.Unauthenticated,
            errors.PermissionDenied,
            errors.InternalFault,
            errors.StoreDamaged,
        ],
    )
    def test_the_client_raises_the_class_that_the_server_raised(
        self, server: FakeServer, client: Client, kind: type[errors.TwinserveError]
    ) -> None:
        code = next(c for c in grpc.StatusCode if c.value[0] == kind.code)
        server.on("GetGallery", status(code, "what was wrong", reason=kind.reason))
        with pytest.raises(errors.TwinserveError, match="what was wrong") as caught:
            client.get_gallery("people")
        assert type(caught.value) is kind

    def test_the_details_fill_field_metadata_resource_and_retry_delay(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "Search",
            status(
                grpc.StatusCode.FAILED_PRECONDITION,
                "another space",
                reason="SPACE_MISMATCH",
                metadata={"got": "sp_1", "expected": "sp_2"},
                field="probes[0].embedding",
                retry_after=1.5,
                resource=("gallery", "people"),
            ),
        )
        with pytest.raises(errors.SpaceMismatch) as caught:
            client.search("people", ["x"])
        assert caught.value.metadata == {"got": "sp_1", "expected": "sp_2"}
        assert caught.value.field == "probes[0].embedding"
        assert caught.value.retry_after == 1.5
        assert caught.value.resource == ("gallery", "people")

    def test_an_unknown_reason_gives_the_class_of_its_code_and_is_kept(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "GetGallery", status(grpc.StatusCode.NOT_FOUND, "gone", reason="DIMENSION_NOT_FOUND")
        )
        with pytest.raises(errors.NotFound) as caught:
            client.get_gallery("people")
        assert type(caught.value) is errors.NotFound
        assert caught.value.metadata["reason"] == "DIMENSION_NOT_FOUND"

    def test_a_reason_of_another_domain_is_not_ours(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "GetGallery",
            status(
                grpc.StatusCode.NOT_FOUND, "gone", reason="MODEL_NOT_FOUND", domain="proxy.example"
            ),
        )
        with pytest.raises(errors.NotFound) as caught:
            client.get_gallery("people")
        assert type(caught.value) is errors.NotFound

    def test_a_code_that_twinserve_never_sends_is_an_internal_fault_that_names_it(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("GetGallery", status(grpc.StatusCode.OUT_OF_RANGE, "odd"))
        with pytest.raises(errors.InternalFault) as caught:
            client.get_gallery("people")
        assert caught.value.metadata["code"] == str(grpc.StatusCode.OUT_OF_RANGE.value[0])

    def test_a_call_past_its_deadline_says_so(self, server: FakeServer, client: Client) -> None:
        def late(request: object) -> gallery_service_pb2.GetGalleryResponse:
            time.sleep(0.5)
            return gallery_service_pb2.GetGalleryResponse()

        server.on("GetGallery", late)
        with pytest.raises(errors.DeadlineExceeded, match="longer timeout"):
            client.get_gallery("people", timeout=0.1)


class TestGalleryChanges:
    def test_moves_renames_and_counts_say_what_is_meant(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "MoveItems", gallery_service_pb2.MoveItemsResponse(moved=2, consistency_token="t")
        )
        server.on("RenameSubject", gallery_service_pb2.RenameSubjectResponse(moved=3))
        server.on(
            "CountItems", gallery_service_pb2.CountItemsResponse(item_count=5, subject_count=4)
        )
        server.on("ListItems", gallery_service_pb2.ListItemsResponse())
        moved = client.move_items("people", "bob", ["a", "b"])
        assert (moved.moved, moved.consistency_token) == (2, "t")
        client.move_items("people", "", filter={"site": "north"})
        assert client.rename_subject("people", "bob", "robert", merge=True).moved == 3
        count = client.count_items("people", subject="bob", filter={"age": 3}, at_least="t")
        assert (count.items, count.subjects) == (5, 4)
        assert list(client.list_items("people", subject="bob")) == []
        by_ids, by_filter = server.asked("MoveItems")
        assert (list(by_ids.ids.ids), by_ids.subject) == (["a", "b"], "bob")
        assert (by_filter.WhichOneof("source"), by_filter.subject) == ("filter", "")
        (renamed,) = server.asked("RenameSubject")
        assert (renamed.subject, renamed.new_subject, renamed.merge) == ("bob", "robert", True)
        ids = {one.request_id for one in (by_ids, by_filter, renamed)}
        assert len(ids) == 3
        assert all(ids)
        (counted,) = server.asked("CountItems")
        assert (counted.subject, counted.at_least) == ("bob", "t")
        assert counted.filter.all.filters[0].clause.equals.integer == 3
        assert server.asked("ListItems")[0].subject == "bob"

    def test_a_move_takes_ids_or_a_filter_and_no_ids_are_no_filter(
        self, server: FakeServer, client: Client
    ) -> None:
        for choice in ({}, {"ids": ["a"], "filter": {"x": 1}}):
            with pytest.raises(errors.InvalidInput, match="exactly one"):
                client.move_items("people", "bob", **choice)  # type: ignore[arg-type]
        assert server.requests == []
        server.on("MoveItems", gallery_service_pb2.MoveItemsResponse())
        client.move_items("people", "bob", [])
        assert server.asked("MoveItems")[0].WhichOneof("source") == "ids"

    def test_an_alias_says_what_it_stood_for_and_a_gallery_what_stands_for_it(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("SetGalleryAlias", gallery_service_pb2.SetGalleryAliasResponse(previous="one"))
        server.on("DeleteGalleryAlias", gallery_service_pb2.DeleteGalleryAliasResponse())
        described = gallery_pb2.Gallery(name="two", aliases=["best", "live"])
        server.on("GetGallery", gallery_service_pb2.GetGalleryResponse(gallery=described))
        assert client.set_gallery_alias("live", "two") == "one"
        client.delete_gallery_alias("live")
        assert server.asked("DeleteGalleryAlias")[0].alias == "live"
        assert client.get_gallery("live").aliases == ("best", "live")

    def test_any_number_of_items_is_enrolled_batch_by_batch_over_one_stream(
        self, server: FakeServer, client: Client
    ) -> None:
        def answer(request: Any) -> Any:
            response = gallery_service_pb2.EnrollResponse()
            for item in request.items:
                response.results.extend(enrolled(item.item.id).results)
            return response

        server.on("EnrollStream", answer)
        items = (EnrollItem(b"x", id=f"i{n}") for n in range(7))
        found = [
            [one.id for one in part.checked()]
            for part in client.enroll_stream("people", items, batch=3)
        ]
        assert found == [["i0", "i1", "i2"], ["i3", "i4", "i5"], ["i6"]]
        assert server.finished == ["EnrollStream"], "an orderly end, and not a cancelled one"
        ids = [request.request_id for request in server.asked("EnrollStream")]
        assert len(set(ids)) == 3
        assert all(ids)

    def test_a_stream_that_is_sent_elsewhere_goes_on_with_the_same_request_ids(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("EnrollStream", enrolled("a"), UNAVAILABLE, enrolled("b"))
        items = [EnrollItem(b"x", id="a"), EnrollItem(b"y", id="b")]
        parts = list(client.enroll_stream("people", items, batch=1))
        assert [part.checked()[0].id for part in parts] == ["a", "b"]
        first, second, again = server.asked("EnrollStream")
        assert again == second
        assert again.request_id != first.request_id


class TestRetries:
    def test_a_write_is_retried_with_the_request_id_it_began_with(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Enroll", UNAVAILABLE, UNAVAILABLE, enrolled("a"))
        (answer,) = client.enroll("people", [EnrollItem(b"x", id="a")]).checked()
        assert (answer.id, answer.change) == ("a", "created")
        ids = [request.request_id for request in server.asked("Enroll")]
        assert len(ids) == 3
        assert len(set(ids)) == 1
        assert str(uuid.UUID(ids[0])) == ids[0]

    def test_two_writes_never_share_a_request_id(self, server: FakeServer, client: Client) -> None:
        server.on("Enroll", enrolled())
        server.on("Remove", gallery_service_pb2.RemoveResponse())
        server.on("CreateGallery", gallery_service_pb2.CreateGalleryResponse())
        for _ in range(2):
            client.enroll("people", [EnrollItem(b"x", id="a")])
            client.remove("people", ["a"])
            client.create_gallery("people")
        ids = [request.request_id for _, request in server.requests]
        assert len(set(ids)) == 6
        assert all(ids)

    def test_a_request_id_of_the_callers_own_is_kept(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Enroll", enrolled())
        mine = str(uuid.uuid4())
        client.enroll("people", [EnrollItem(b"x")], request_id=mine)
        assert server.asked("Enroll")[0].request_id == mine

    def test_exhausted_waits_for_the_delay_that_the_server_names(
        self, server: FakeServer, client: Client
    ) -> None:
        full = status(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after=0.3
        )
        server.on("Embed", full, embedding_service_pb2.EmbedResponse(results=[embedding(1.0)]))
        start = time.monotonic()
        assert len(client.embed(["a"])) == 1
        assert time.monotonic() - start >= 0.3
        assert len(server.asked("Embed")) == 2

    def test_exhausted_without_a_delay_is_not_tried_again(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on("Embed", status(grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large"))
        with pytest.raises(errors.Exhausted):
            client.embed(["a"])
        assert len(server.asked("Embed")) == 1

    def test_a_delay_past_the_deadline_raises_the_reason_at_once(
        self, server: FakeServer, client: Client
    ) -> None:
        full = status(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after=0.9
        )
        server.on("Embed", full)
        start = time.monotonic()
        with pytest.raises(errors.QueueFull) as caught:
            client.embed(["a"], timeout=0.5)
        assert time.monotonic() - start < 0.5
        assert caught.value.retry_after == pytest.approx(0.9)

    def test_other_errors_are_not_tried_again_whatever_delay_they_name(
        self, server: FakeServer, client: Client
    ) -> None:
        server.on(
            "Embed",
            status(grpc.StatusCode.INVALID_ARGUMENT, "no", reason="EMPTY_INPUT", retry_after=0.01),
        )
        with pytest.raises(errors.EmptyInput):
            client.embed(["a"])
        assert len(server.asked("Embed")) == 1

    def test_a_server_that_is_not_there_is_given_up_after_the_time_allowed(self) -> None:
        start = time.monotonic()
        with (
            Client("127.0.0.1:1", timeout=20.0, unavailable_for=0.2) as client,
            pytest.raises(errors.Unavailable, match=r"no server answers at 127\.0\.0\.1:1"),
        ):
            client.get_gallery("people")
        assert time.monotonic() - start < 5.0

    def test_a_server_that_comes_back_on_its_port_is_found_again(self, server: FakeServer) -> None:
        server.on("Enroll", enrolled())
        with Client(server.target, timeout=5.0) as client:
            client.enroll("people", [EnrollItem(b"x")])
            server.stop()
            back = FakeServer(server.target)
            back.on("Enroll", enrolled("b"))
            try:
                (answer,) = client.enroll("people", [EnrollItem(b"x")]).checked()
            finally:
                back.stop()
        assert answer.id == "b"


class TestConnection:
    def test_the_key_goes_with_every_call(self, server: FakeServer) -> None:
        server.on("ListModels", model_service_pb2.ListModelsResponse())
        with Client(server.target, api_key="secret") as client:
            list(client.models())
        assert server.metadata[0]["authorization"] == "Bearer secret"

    def test_without_a_key_none_is_sent(
        self, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TWINSERVE_API_KEY", raising=False)
        server.on("ListModels", model_service_pb2.ListModelsResponse())
        with Client(server.target) as client:
            list(client.models())
        assert "authorization" not in server.metadata[0]
        assert "twinserve-priority" not in server.metadata[0]

    def test_the_priority_goes_with_every_call(self, server: FakeServer) -> None:
        server.on("ListModels", model_service_pb2.ListModelsResponse())
        with Client(server.target, priority="low") as client:
            list(client.models())
        assert server.metadata[0]["twinserve-priority"] == "low"

    def test_messages_above_grpcs_four_megabytes_pass_both_ways(
        self, server: FakeServer, client: Client
    ) -> None:
        many = [embedding(*([0.5] * 1000)) for _ in range(1500)]
        server.on("Embed", embedding_service_pb2.EmbedResponse(results=many))
        assert client.embed(["a"]).vectors.shape == (1500, 1000)

    def test_health_tells_serving_from_not_serving(
        self, server: FakeServer, client: Client
    ) -> None:
        serving, draining = (
            health_pb2.HealthCheckResponse(status=s)
            for s in (
                health_pb2.HealthCheckResponse.SERVING,
                health_pb2.HealthCheckResponse.NOT_SERVING,
            )
        )
        server.on("Check", serving, draining)
        assert client.health() is Health.SERVING
        assert client.health("twinserve.v1.GalleryService") is Health.NOT_SERVING
        assert server.asked("Check")[1].service == "twinserve.v1.GalleryService"

    def test_health_of_nobody_is_unavailable_and_asked_once(self) -> None:
        start = time.monotonic()
        with Client("127.0.0.1:1") as client, pytest.raises(errors.Unavailable):
            client.health()
        assert time.monotonic() - start < 3.0

    def test_a_model_carries_its_whole_manifest(self, server: FakeServer, client: Client) -> None:
        model = model_pb2.Model(name="m", manifest_json="not json")
        server.on("GetModel", model_service_pb2.GetModelResponse(model=model))
        with pytest.raises(errors.ManifestError):
            client.model().manifest()
