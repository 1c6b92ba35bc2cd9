"""Errors of whole requests, each provoked on a real server: code, reason and details.

What is wrong with single inputs stands in `test_error_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve.v1 import (
    embedding_service_pb2 as embedding_pb,
)
from twinserve.v1 import (
    gallery_pb2,
    model_service_pb2,
    shared_pb2,
)
from twinserve.v1 import gallery_service_pb2 as pb

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with server.channel() as channel:
        made = Stubs(channel)
        made.gallery.CreateGallery(
            pb.CreateGalleryRequest(
                gallery=gallery_pb2.Gallery(
                    name="cosine",
                    metric=shared_pb2.METRIC_COSINE,
                    metadata_keys=[
                        gallery_pb2.MetadataKey(key="age", type=gallery_pb2.METADATA_TYPE_INTEGER)
                    ],
                )
            )
        )
        made.gallery.Enroll(
            pb.EnrollRequest(
                gallery="cosine",
                items=[
                    pb.EnrollItem(
                        item=shared_pb2.Item(id="a", subject="ann"),
                        input=wire.tensor(np.full((28, 28, 1), 9, np.uint8)),
                    )
                ],
            )
        )
        yield made


PIXELS, _ = twins.classes_of_pixels(1, 1)


def test_empty_and_oversized_calls_are_refused(stubs: Stubs) -> None:
    good = wire.tensor(PIXELS[0])
    calls: list[tuple[Callable[[], object], str, str]] = [
        (lambda: stubs.embedding.Embed(embedding_pb.EmbedRequest()), "EMPTY_INPUT", "inputs"),
        (lambda: stubs.embedding.Compare(embedding_pb.CompareRequest()), "EMPTY_INPUT", "pairs"),
        (lambda: stubs.gallery.Enroll(pb.EnrollRequest(gallery="cosine")), "EMPTY_INPUT", "items"),
        (lambda: stubs.gallery.Search(pb.SearchRequest(gallery="cosine")), "EMPTY_INPUT", "probes"),
        (
            lambda: stubs.embedding.Embed(embedding_pb.EmbedRequest(inputs=[good] * 1025)),
            "LIMIT_EXCEEDED",
            "inputs",
        ),
        (
            lambda: stubs.gallery.Search(pb.SearchRequest(gallery="cosine", probes=[good] * 1025)),
            "LIMIT_EXCEEDED",
            "probes",
        ),
        (
            lambda: stubs.gallery.Search(
                pb.SearchRequest(gallery="cosine", probes=[good], top_k=1001)
            ),
            "LIMIT_EXCEEDED",
            "top_k",
        ),
        (
            lambda: stubs.gallery.Search(
                pb.SearchRequest(gallery="cosine", probes=[good], top_k=-1)
            ),
            "LIMIT_EXCEEDED",
            "top_k",
        ),
        (
            lambda: stubs.gallery.Search(
                pb.SearchRequest(gallery="cosine", probes=[good], mean_of=101)
            ),
            "LIMIT_EXCEEDED",
            "mean_of",
        ),
        (
            lambda: stubs.gallery.Search(
                pb.SearchRequest(gallery="cosine", probes=[good], mean_of=-1)
            ),
            "LIMIT_EXCEEDED",
            "mean_of",
        ),
        (
            lambda: stubs.gallery.Verify(
                pb.VerifyRequest(gallery="cosine", subject="s", probe=good, mean_of=101)
            ),
            "LIMIT_EXCEEDED",
            "mean_of",
        ),
        (
            lambda: stubs.gallery.Search(
                pb.SearchRequest(
                    gallery="cosine", probes=[good], mean_of=2, group_by=pb.GROUP_BY_ITEM
                )
            ),
            "INVALID_INPUT",
            "mean_of",
        ),
        (
            lambda: stubs.gallery.Search(pb.SearchRequest(gallery="cosine", probes=[good], ef=0)),
            "LIMIT_EXCEEDED",
            "ef",
        ),
        (lambda: stubs.gallery.Remove(pb.RemoveRequest(gallery="cosine")), "EMPTY_INPUT", ""),
        (
            lambda: stubs.gallery.MoveItems(
                pb.MoveItemsRequest(gallery="cosine", ids=pb.IdList(), subject="a")
            ),
            "EMPTY_INPUT",
            "ids.ids",
        ),
        (
            lambda: stubs.gallery.MoveItems(
                pb.MoveItemsRequest(gallery="cosine", ids=pb.IdList(ids=["a"] * 1025))
            ),
            "LIMIT_EXCEEDED",
            "ids.ids",
        ),
        (
            lambda: stubs.gallery.RenameSubject(
                pb.RenameSubjectRequest(gallery="cosine", subject="a", new_subject="x" * 257)
            ),
            "LIMIT_EXCEEDED",
            "new_subject",
        ),
        (
            lambda: stubs.gallery.Verify(pb.VerifyRequest(gallery="cosine", probe=good)),
            "EMPTY_INPUT",
            "subject",
        ),
    ]
    for call, reason, field in calls:
        with Refused(CODE.INVALID_ARGUMENT) as refused:
            call()
        assert wire.reason(refused.status) == reason
        if field:
            assert wire.field(refused.status) == field


def test_required_names_that_are_empty_are_refused_with_their_field(stubs: Stubs) -> None:
    good = wire.tensor(PIXELS[0])
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: stubs.gallery.GetGallery(pb.GetGalleryRequest()), "name"),
        (lambda: stubs.gallery.DeleteGallery(pb.DeleteGalleryRequest()), "name"),
        (lambda: stubs.gallery.GetItem(pb.GetItemRequest(gallery="cosine")), "id"),
        (lambda: stubs.gallery.ListItems(pb.ListItemsRequest()), "gallery"),
        (lambda: stubs.gallery.Search(pb.SearchRequest(probes=[good])), "gallery"),
        (lambda: stubs.gallery.Verify(pb.VerifyRequest(subject="a", probe=good)), "gallery"),
        (
            lambda: stubs.gallery.Enroll(pb.EnrollRequest(items=[pb.EnrollItem(input=good)])),
            "gallery",
        ),
        (lambda: stubs.gallery.Remove(pb.RemoveRequest(subject="a")), "gallery"),
        (lambda: stubs.gallery.Remove(pb.RemoveRequest(gallery="cosine")), "target"),
        (lambda: stubs.gallery.MoveItems(pb.MoveItemsRequest(subject="a")), "gallery"),
        (lambda: stubs.gallery.MoveItems(pb.MoveItemsRequest(gallery="cosine")), "source"),
        (lambda: stubs.gallery.RenameSubject(pb.RenameSubjectRequest(subject="a")), "gallery"),
        (
            lambda: stubs.gallery.RenameSubject(
                pb.RenameSubjectRequest(gallery="cosine", new_subject="a")
            ),
            "subject",
        ),
        (
            lambda: stubs.gallery.RenameSubject(
                pb.RenameSubjectRequest(gallery="cosine", subject="a")
            ),
            "new_subject",
        ),
        (lambda: stubs.gallery.CountItems(pb.CountItemsRequest()), "gallery"),
        (lambda: stubs.gallery.SetGalleryAlias(pb.SetGalleryAliasRequest(alias="a")), "gallery"),
        (
            lambda: stubs.gallery.SetGalleryAlias(pb.SetGalleryAliasRequest(gallery="cosine")),
            "alias",
        ),
        (lambda: stubs.gallery.DeleteGalleryAlias(pb.DeleteGalleryAliasRequest()), "alias"),
        (
            lambda: list(
                stubs.gallery.EnrollStream(
                    iter([pb.EnrollRequest(items=[pb.EnrollItem(input=good)])])
                )
            ),
            "gallery",
        ),
    ]
    for call, field in calls:
        with Refused(CODE.INVALID_ARGUMENT) as refused:
            call()
        assert (wire.reason(refused.status), wire.field(refused.status)) == ("EMPTY_INPUT", field)


def test_numbers_that_the_contract_does_not_have_are_refused(stubs: Stubs) -> None:
    good = wire.tensor(PIXELS[0])
    search = pb.SearchRequest(gallery="cosine", probes=[good])
    calls: list[tuple[Callable[[], object], str]] = [
        (
            lambda: stubs.gallery.Search(pb.SearchRequest(gallery="cosine", probes=[good], view=9)),  # type: ignore[arg-type]
            "view",
        ),
        (
            lambda: stubs.gallery.Search(
                pb.SearchRequest(gallery="cosine", probes=[good], group_by=7)  # type: ignore[arg-type]
            ),
            "group_by",
        ),
        (
            lambda: stubs.gallery.ListItems(pb.ListItemsRequest(gallery="cosine", view=9)),  # type: ignore[arg-type]
            "view",
        ),
        (
            lambda: stubs.embedding.Embed(
                embedding_pb.EmbedRequest(
                    inputs=[good],
                    options=embedding_pb.EmbedOptions(encoding=99),  # type: ignore[arg-type]
                )
            ),
            "options.encoding",
        ),
    ]
    for call, field in calls:
        with Refused(CODE.INVALID_ARGUMENT) as refused:
            call()
        assert wire.field(refused.status) == field
    assert stubs.gallery.Search(search).results


def test_one_search_cannot_ask_for_a_million_hits(stubs: Stubs) -> None:
    request = pb.SearchRequest(gallery="cosine", probes=[wire.tensor(PIXELS[0])] * 1000, top_k=1000)
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.Search(request)
    assert (wire.reason(refused.status), wire.field(refused.status)) == ("LIMIT_EXCEEDED", "top_k")


def test_a_name_of_any_length_is_answered_with_its_own_code(stubs: Stubs) -> None:
    long = "名" * 7000
    with Refused(CODE.NOT_FOUND):
        stubs.model.GetModel(model_service_pb2.GetModelRequest(name=long))
    with Refused(CODE.FAILED_PRECONDITION):
        stubs.embedding.Embed(embedding_pb.EmbedRequest(inputs=[wire.ready(np.ones(16), long)]))
    with Refused(CODE.NOT_FOUND):
        stubs.gallery.Verify(
            pb.VerifyRequest(gallery="cosine", subject=long, probe=wire.tensor(PIXELS[0]))
        )


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (shared_pb2.DecisionRule(false_accept_rate=0.0), "rule.false_accept_rate"),
        (shared_pb2.DecisionRule(false_accept_rate=1.0), "rule.false_accept_rate"),
        (shared_pb2.DecisionRule(false_accept_rate=float("nan")), "rule.false_accept_rate"),
        (shared_pb2.DecisionRule(threshold=-0.1), "rule.threshold"),
        (shared_pb2.DecisionRule(threshold=float("inf")), "rule.threshold"),
        (
            shared_pb2.DecisionRule(false_positive_identification_rate=0.1),
            "rule.false_positive_identification_rate",
        ),
    ],
)
def test_a_rule_outside_its_range_is_refused(
    stubs: Stubs, rule: shared_pb2.DecisionRule, field: str
) -> None:
    pair = embedding_pb.Pair(first=wire.image(PIXELS[0]), second=wire.image(PIXELS[0]))
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.embedding.Compare(embedding_pb.CompareRequest(pairs=[pair], rule=rule))
    assert wire.field(refused.status) == field


def test_metadata_over_its_limit_and_filters_on_undeclared_keys_are_refused(stubs: Stubs) -> None:
    fat = shared_pb2.Item(metadata={"note": shared_pb2.MetadataValue(text="x" * 100_000)})
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.Enroll(
            pb.EnrollRequest(
                gallery="cosine", items=[pb.EnrollItem(item=fat, input=wire.tensor(PIXELS[0]))]
            )
        )
    assert wire.reason(refused.status) == "LIMIT_EXCEEDED"
    clause = shared_pb2.Clause(key="shoe", exists=True)
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        stubs.gallery.Search(
            pb.SearchRequest(
                gallery="cosine",
                probes=[wire.tensor(PIXELS[0])],
                filter=shared_pb2.Filter(clause=clause),
            )
        )
    assert wire.reason(refused.status) == "UNDECLARED_KEY"


def test_a_bad_page_token_is_refused(stubs: Stubs) -> None:
    calls: list[Callable[[], object]] = [
        lambda: stubs.gallery.ListGalleries(pb.ListGalleriesRequest(page_token="rubbish")),
        lambda: stubs.gallery.ListItems(pb.ListItemsRequest(gallery="cosine", page_token="ab")),
        lambda: stubs.model.ListModels(model_service_pb2.ListModelsRequest(page_token="?")),
    ]
    for call in calls:
        with Refused(CODE.INVALID_ARGUMENT) as refused:
            call()
        assert wire.reason(refused.status) == "BAD_PAGE_TOKEN"


def test_what_is_not_there_is_named(stubs: Stubs) -> None:
    good = wire.tensor(PIXELS[0])
    calls: list[tuple[Callable[[], object], str]] = [
        (
            lambda: stubs.embedding.Embed(embedding_pb.EmbedRequest(model="x", inputs=[good])),
            "MODEL_NOT_FOUND",
        ),
        (
            lambda: stubs.model.GetModel(model_service_pb2.GetModelRequest(name="small@2")),
            "MODEL_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.Search(pb.SearchRequest(gallery="x", probes=[good])),
            "GALLERY_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.GetGallery(pb.GetGalleryRequest(name="x")),
            "GALLERY_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.DeleteGallery(pb.DeleteGalleryRequest(name="../../etc")),
            "GALLERY_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.GetItem(pb.GetItemRequest(gallery="cosine", id="x")),
            "ITEM_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.Verify(
                pb.VerifyRequest(gallery="cosine", subject="nobody", probe=good)
            ),
            "SUBJECT_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.Enroll(
                pb.EnrollRequest(
                    gallery="cosine", items=[pb.EnrollItem(item=shared_pb2.Item(id="none"))]
                )
            ),
            "ITEM_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.MoveItems(
                pb.MoveItemsRequest(gallery="cosine", ids=pb.IdList(ids=["none"]), subject="a")
            ),
            "ITEM_NOT_FOUND",
        ),
        (
            lambda: stubs.gallery.RenameSubject(
                pb.RenameSubjectRequest(gallery="cosine", subject="nobody", new_subject="a")
            ),
            "SUBJECT_NOT_FOUND",
        ),
        *(
            (call, "GALLERY_NOT_FOUND")
            for call in (
                lambda: stubs.gallery.MoveItems(
                    pb.MoveItemsRequest(gallery="x", ids=pb.IdList(ids=["a"]))
                ),
                lambda: stubs.gallery.RenameSubject(
                    pb.RenameSubjectRequest(gallery="x", subject="a", new_subject="b")
                ),
                lambda: stubs.gallery.CountItems(pb.CountItemsRequest(gallery="x")),
                lambda: stubs.gallery.SetGalleryAlias(
                    pb.SetGalleryAliasRequest(alias="a", gallery="x")
                ),
            )
        ),
        (
            lambda: stubs.gallery.DeleteGalleryAlias(pb.DeleteGalleryAliasRequest(alias="x")),
            "NOT_FOUND",
        ),
    ]
    for call, reason in calls:
        with Refused(CODE.NOT_FOUND) as refused:
            call()
        assert wire.reason(refused.status) == reason


def test_a_gallery_with_other_settings_exists_already(stubs: Stubs) -> None:
    other = gallery_pb2.Gallery(name="cosine", metric=shared_pb2.METRIC_EUCLIDEAN)
    with Refused(CODE.ALREADY_EXISTS) as refused:
        stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=other))
    assert "cosine" in refused.status.message


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "..", "-a", "a" * 64, "a\0b"])
def test_a_gallery_name_outside_the_pattern_is_refused(stubs: Stubs, name: str) -> None:
    with Refused(CODE.INVALID_ARGUMENT):
        stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name=name)))


def test_a_deadline_that_has_passed_is_answered_so(stubs: Stubs) -> None:
    request = embedding_pb.EmbedRequest(inputs=[wire.tensor(PIXELS[0])] * 1000)
    with pytest.raises(grpc.RpcError) as late:
        stubs.embedding.Embed(request, timeout=1e-4)
    assert late.value.code() is CODE.DEADLINE_EXCEEDED
