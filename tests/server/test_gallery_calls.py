"""Galleries through the contract: enrol, search, verify, list, remove, restart."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Stubs
from twinserve import manifest
from twinserve.distance import Metric, pairwise
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

PIXELS, LABELS = twins.classes_of_pixels(8, 3)
VECTORS = twins.embed_pixels(PIXELS)


@pytest.fixture(scope="module")
def stubs(server: RunningServer) -> Iterator[Stubs]:
    with server.channel() as channel:
        yield Stubs(channel)


@pytest.fixture
def gallery(stubs: Stubs) -> Iterator[str]:
    """A fresh euclidean gallery with two items of each of eight subjects."""
    name = f"g{uuid.uuid4().hex[:8]}"
    made = stubs.gallery.CreateGallery(
        pb.CreateGalleryRequest(
            gallery=gallery_pb2.Gallery(
                name=name,
                metadata_keys=[
                    gallery_pb2.MetadataKey(key="class", type=gallery_pb2.METADATA_TYPE_INTEGER)
                ],
            )
        )
    )
    assert made.gallery.metric == shared_pb2.METRIC_EUCLIDEAN
    assert made.gallery.dimension == 16
    items = [
        pb.EnrollItem(
            item=shared_pb2.Item(
                id=f"item-{i}",
                subject=f"subject-{LABELS[i]}",
                metadata={"class": shared_pb2.MetadataValue(integer=int(LABELS[i]))},
            ),
            input=wire.tensor(PIXELS[i]) if i % 2 else wire.image(PIXELS[i]),
        )
        for i in enrolled()
    ]
    reply = stubs.gallery.Enroll(pb.EnrollRequest(gallery=name, items=items))
    assert [r.enrolled.change for r in reply.results] == [pb.CHANGE_CREATED] * 16
    yield name
    stubs.gallery.DeleteGallery(pb.DeleteGalleryRequest(name=name))


def enrolled() -> list[int]:
    return [i for i in range(len(PIXELS)) if i % 3]


def probe(index: int) -> shared_pb2.Input:
    return wire.image(PIXELS[index])


def test_search_finds_each_subject_once_by_its_nearest_item(stubs: Stubs, gallery: str) -> None:
    probes = [probe(i) for i in range(0, 24, 3)]
    reply = stubs.gallery.Search(pb.SearchRequest(gallery=gallery, probes=probes, top_k=8))
    distances = pairwise(VECTORS[::3], VECTORS[enrolled()], Metric.EUCLIDEAN)
    for row, result in enumerate(reply.results):
        hits = result.hits.hits
        assert hits[0].item.subject == f"subject-{row}"
        assert len({hit.item.subject for hit in hits}) == 8
        assert result.hits.exact
        by_subject = distances[row].reshape(8, 2).min(axis=1)
        np.testing.assert_allclose(
            [hit.score.distance for hit in hits], np.sort(by_subject), atol=1e-4
        )
        assert hits[0].match
        assert result.hits.outcome == shared_pb2.OUTCOME_MATCH
        assert hits[0].score.distance <= result.hits.threshold
        assert 0 < result.hits.expected_false_matches < 1
    assert reply.model_version == "small@1"


def test_a_probe_of_nobody_is_told_so(stubs: Stubs, gallery: str) -> None:
    stranger, _ = twins.classes_of_pixels(1, 1, seed=99)
    reply = stubs.gallery.Search(
        pb.SearchRequest(
            gallery=gallery,
            probes=[wire.image(stranger[0])],
            top_k=3,
            rule=shared_pb2.DecisionRule(threshold=0.8),
        )
    )
    hits = reply.results[0].hits
    assert hits.outcome == shared_pb2.OUTCOME_NO_MATCH
    assert len(hits.hits) == 3
    assert not any(hit.match for hit in hits.hits)


def test_search_by_item_with_a_filter_and_a_largest_distance(stubs: Stubs, gallery: str) -> None:
    two = shared_pb2.MetadataValue(integer=2)
    only = shared_pb2.Filter(clause=shared_pb2.Clause(key="class", equals=two))
    request = pb.SearchRequest(
        gallery=gallery,
        probes=[probe(0)],
        filter=only,
        group_by=pb.GROUP_BY_ITEM,
        view=pb.ITEM_VIEW_FULL,
    )
    hits = stubs.gallery.Search(request).results[0].hits.hits
    assert {hit.item.id for hit in hits} == {"item-7", "item-8"}
    assert all(hit.item.metadata["class"].integer == 2 for hit in hits)
    assert all(hit.item.create_time.seconds > 0 for hit in hits)
    request.max_distance = hits[0].score.distance
    assert len(stubs.gallery.Search(request).results[0].hits.hits) == 1


def test_one_bad_probe_fails_alone(stubs: Stubs, gallery: str) -> None:
    probes = [probe(0), shared_pb2.Input(image=b"no"), probe(3)]
    reply = stubs.gallery.Search(pb.SearchRequest(gallery=gallery, probes=probes, top_k=1))
    assert [r.WhichOneof("result") for r in reply.results] == ["hits", "error", "hits"]
    assert reply.results[2].hits.hits[0].item.subject == "subject-1"
    assert wire.field(reply.results[1].error) == "probes[1].image"


def test_verify_compares_with_every_item_of_the_subject(
    stubs: Stubs, gallery: str, twin_file: Path
) -> None:
    yes = stubs.gallery.Verify(
        pb.VerifyRequest(gallery=gallery, subject="subject-1", probe=probe(3))
    )
    no = stubs.gallery.Verify(
        pb.VerifyRequest(gallery=gallery, subject="subject-1", probe=probe(6))
    )
    assert yes.decision.outcome == shared_pb2.OUTCOME_MATCH
    assert no.decision.outcome == shared_pb2.OUTCOME_NO_MATCH
    assert yes.items_compared == 2
    distances = pairwise(VECTORS[3:4], VECTORS[4:6], Metric.EUCLIDEAN)[0]
    assert yes.item_id == f"item-{4 + int(distances.argmin())}"
    assert yes.score.distance == pytest.approx(distances.min(), abs=1e-4)
    calibration = manifest.read(twin_file).calibration(16)
    assert calibration is not None
    # Two chances to match by accident, so each gets about half the rate; both together have it.
    (point,) = (p for p in calibration.points if p.threshold == yes.decision.threshold)
    assert point.false_accept_rate <= calibration.default_far / 2 * 1.01
    assert point.false_accept_rate < yes.decision.false_accept_rate <= calibration.default_far


def test_items_are_listed_in_pages_in_the_order_of_their_ids(stubs: Stubs, gallery: str) -> None:
    seen: list[str] = []
    token = ""
    while True:
        page = stubs.gallery.ListItems(
            pb.ListItemsRequest(gallery=gallery, page_size=5, page_token=token)
        )
        seen += [item.id for item in page.items]
        token = page.next_page_token
        if not token:
            break
        # Writes between pages neither repeat nor skip what they do not touch.
        stubs.gallery.Enroll(
            pb.EnrollRequest(
                gallery=gallery,
                items=[pb.EnrollItem(item=shared_pb2.Item(id="item-00"), input=probe(0))],
            )
        )
    assert seen == sorted(f"item-{i}" for i in enrolled())


def test_an_item_comes_back_with_its_embedding_as_enrolled(
    stubs: Stubs, gallery: str, twin_file: Path
) -> None:
    vector = np.linspace(-3, 5, 16).astype(np.float32)
    space = manifest.read(twin_file).space_id
    stubs.gallery.Enroll(
        pb.EnrollRequest(
            gallery=gallery,
            items=[pb.EnrollItem(item=shared_pb2.Item(id="raw"), input=wire.ready(vector, space))],
        )
    )
    got = stubs.gallery.GetItem(pb.GetItemRequest(gallery=gallery, id="raw", with_embedding=True))
    assert np.array(got.embedding.values, np.float32).tolist() == vector.tolist()
    assert got.embedding.space_id == space
    again = stubs.gallery.Search(
        pb.SearchRequest(
            gallery=gallery, probes=[shared_pb2.Input(embedding=got.embedding)], top_k=1
        )
    )
    assert again.results[0].hits.hits[0].item.id == "raw"
    assert again.results[0].hits.hits[0].score.distance == 0.0
    assert again.model_version == "", "no model ran"


def test_enrolling_again_says_what_changed(stubs: Stubs, gallery: str) -> None:
    def enroll(subject: str, index: int | None) -> int:
        item = pb.EnrollItem(item=shared_pb2.Item(id="x", subject=subject))
        if index is not None:
            item.input.CopyFrom(probe(index))
        reply = stubs.gallery.Enroll(pb.EnrollRequest(gallery=gallery, items=[item]))
        return int(reply.results[0].enrolled.change)

    assert enroll("ann", 0) == pb.CHANGE_CREATED
    assert enroll("ann", 0) == pb.CHANGE_UNCHANGED
    assert enroll("ann", 3) == pb.CHANGE_REPLACED
    assert enroll("bea", None) == pb.CHANGE_REPLACED
    got = stubs.gallery.GetItem(pb.GetItemRequest(gallery=gallery, id="x"))
    assert got.item.subject == "bea"


def test_a_retry_with_the_same_request_id_returns_the_first_answer(
    stubs: Stubs, gallery: str
) -> None:
    request = pb.EnrollRequest(
        gallery=gallery, items=[pb.EnrollItem(input=probe(0))], request_id=str(uuid.uuid4())
    )
    first = stubs.gallery.Enroll(request)
    second = stubs.gallery.Enroll(request)
    assert second.results[0].enrolled.id == first.results[0].enrolled.id
    count = stubs.gallery.GetGallery(pb.GetGalleryRequest(name=gallery)).gallery.item_count
    assert count == 17


def test_one_bad_item_fails_alone_and_atomic_enrols_none(stubs: Stubs, gallery: str) -> None:
    items = [
        pb.EnrollItem(item=shared_pb2.Item(id="worse"), input=shared_pb2.Input(image=b"x")),
        pb.EnrollItem(item=shared_pb2.Item(id="good"), input=probe(0)),
        pb.EnrollItem(item=shared_pb2.Item(id="bad id!"), input=probe(0)),
    ]
    with wire.Refused(wire.grpc.StatusCode.INVALID_ARGUMENT):
        stubs.gallery.Enroll(pb.EnrollRequest(gallery=gallery, items=items, atomic=True))
    with wire.Refused(wire.grpc.StatusCode.NOT_FOUND):
        stubs.gallery.GetItem(pb.GetItemRequest(gallery=gallery, id="good"))
    reply = stubs.gallery.Enroll(pb.EnrollRequest(gallery=gallery, items=items))
    assert [r.WhichOneof("result") for r in reply.results] == ["error", "enrolled", "error"]
    assert wire.field(reply.results[0].error) == "items[0].input.image"
    assert wire.field(reply.results[2].error) == "items[2].item.id"


def test_embeddings_go_end_to_end_in_place_of_inputs(stubs: Stubs, gallery: str) -> None:
    space = stubs.gallery.GetGallery(pb.GetGalleryRequest(name=gallery)).gallery.space_id
    vectors = np.arange(48, dtype="<f4").reshape(3, 16)
    named = [pb.EnrollItem(item=shared_pb2.Item(id=f"packed-{i}")) for i in range(3)]
    whole = pb.EnrollRequest(
        gallery=gallery, items=named, embeddings=vectors.tobytes(), space_id=space
    )
    changes = [r.enrolled.change for r in stubs.gallery.Enroll(whole).results]
    assert changes == [pb.CHANGE_CREATED] * 3
    for i in range(3):
        asked = pb.GetItemRequest(gallery=gallery, id=f"packed-{i}", with_embedding=True)
        kept = stubs.gallery.GetItem(asked).embedding.values
        assert list(kept) == vectors[i].tolist()
    # The same vector as an input is the same content.
    one = shared_pb2.Embedding(values=vectors[1].tolist(), space_id=space)
    again = pb.EnrollItem(item=named[1].item, input=shared_pb2.Input(embedding=one))
    reply = stubs.gallery.Enroll(pb.EnrollRequest(gallery=gallery, items=[again]))
    assert reply.results[0].enrolled.change == pb.CHANGE_UNCHANGED


def test_packed_embeddings_that_do_not_fit_are_refused_by_name(stubs: Stubs, gallery: str) -> None:
    space = stubs.gallery.GetGallery(pb.GetGalleryRequest(name=gallery)).gallery.space_id
    named = [pb.EnrollItem(item=shared_pb2.Item(id=f"packed-{i}")) for i in range(2)]
    vectors = np.ones((2, 16), dtype="<f4")

    def refused(code: wire.grpc.StatusCode, **changed: object) -> tuple[str, str]:
        fields = {"items": named, "embeddings": vectors.tobytes(), "space_id": space} | changed
        with wire.Refused(code) as refusal:
            stubs.gallery.Enroll(pb.EnrollRequest(gallery=gallery, **fields))  # type: ignore[arg-type]
        return wire.reason(refusal.status), wire.field(refusal.status)

    invalid = wire.grpc.StatusCode.INVALID_ARGUMENT
    short = refused(invalid, embeddings=vectors.tobytes()[:-4])
    assert short == ("WRONG_SHAPE", "embeddings")
    both = refused(invalid, items=[named[0], pb.EnrollItem(input=probe(0))])
    assert both == ("INVALID_INPUT", "items[1].input")
    foreign = refused(wire.grpc.StatusCode.FAILED_PRECONDITION, space_id="elsewhere")
    assert foreign == ("SPACE_MISMATCH", "space_id")
    vectors[1, 3] = np.nan
    request = pb.EnrollRequest(
        gallery=gallery, items=named, embeddings=vectors.tobytes(), space_id=space
    )
    reply = stubs.gallery.Enroll(request)
    assert reply.results[0].enrolled.change == pb.CHANGE_CREATED
    assert "NaN" in reply.results[1].error.message


def test_each_packed_item_is_told_what_is_wrong_with_it(stubs: Stubs, gallery: str) -> None:
    space = stubs.gallery.GetGallery(pb.GetGalleryRequest(name=gallery)).gallery.space_id
    empty = {"class": shared_pb2.MetadataValue()}
    items = [
        shared_pb2.Item(
            id="packed-0", subject="ü", metadata={"class": shared_pb2.MetadataValue(integer=3)}
        ),
        shared_pb2.Item(id="packed 1"),
        shared_pb2.Item(id="packed-2", metadata=empty),
        shared_pb2.Item(id="packed-3"),
        shared_pb2.Item(),
        shared_pb2.Item(id="packed-0"),
    ]
    vectors = np.random.default_rng(1).normal(size=(10, 16)).astype("<f4")
    vectors[3] = np.inf
    rest = [shared_pb2.Item(id=f"more-{i}", subject="s") for i in range(4)]
    request = pb.EnrollRequest(
        gallery=gallery,
        items=[pb.EnrollItem(item=item) for item in [*items, *rest]],
        embeddings=vectors.tobytes(),
        space_id=space,
    )
    for _ in range(2):
        reply = stubs.gallery.Enroll(request)
        kinds = [result.WhichOneof("result") for result in reply.results]
        assert kinds == ["enrolled", *["error"] * 3, "enrolled", "error", *["enrolled"] * 4]
        fields = [wire.field(reply.results[i].error) for i in (1, 2, 3, 5)]
        assert fields == [
            "items[1].item.id",
            "items[2].item.metadata['class']",
            "items[3]",
            "items[5].item.id",
        ]
        # Once more, with nothing to be told of vectors: the others stay as they are.
        vectors[3] = 1.0
        request.embeddings = vectors.tobytes()
        fixed = stubs.gallery.Enroll(request)
        assert [result.WhichOneof("result") for result in fixed.results][3] == "enrolled"
        assert [wire.field(fixed.results[i].error) for i in (1, 2, 5)] == [
            fields[0], fields[1], fields[3]
        ]  # fmt: skip
        vectors[3] = np.inf
        request.embeddings = vectors.tobytes()
    request.atomic = True
    with wire.Refused(wire.grpc.StatusCode.INVALID_ARGUMENT):
        stubs.gallery.Enroll(request)


def test_what_is_removed_is_not_found_again(stubs: Stubs, gallery: str) -> None:
    by_id = pb.RemoveRequest(gallery=gallery, ids=pb.IdList(ids=["item-1", "none"]))
    assert stubs.gallery.Remove(by_id).removed == 1
    by_subject = pb.RemoveRequest(gallery=gallery, subject="subject-1")
    assert stubs.gallery.Remove(by_subject).removed == 2
    seven = shared_pb2.MetadataValue(integer=7)
    by_filter = pb.RemoveRequest(
        gallery=gallery,
        filter=shared_pb2.Filter(clause=shared_pb2.Clause(key="class", equals=seven)),
    )
    reply = stubs.gallery.Remove(by_filter)
    assert reply.removed == 2
    hits = stubs.gallery.Search(
        pb.SearchRequest(
            gallery=gallery,
            probes=[probe(0)],
            top_k=100,
            group_by=pb.GROUP_BY_ITEM,
            at_least=reply.consistency_token,
        )
    )
    found = {hit.item.id for hit in hits.results[0].hits.hits}
    assert found == {f"item-{i}" for i in enrolled()} - {
        "item-1", "item-4", "item-5", "item-22", "item-23"
    }  # fmt: skip
    status = stubs.gallery.GetGallery(pb.GetGalleryRequest(name=gallery)).gallery
    assert (status.item_count, status.subject_count) == (11, 6)
    assert (status.segment_count, status.dead_count) == (1, 5)
    assert status.memory_bytes > 11 * 4 * status.dimension


def test_galleries_are_listed_by_name_in_pages(stubs: Stubs, gallery: str) -> None:
    names = [f"zz-{i}" for i in range(3)]
    for name in names:
        stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name=name)))
    found: list[str] = []
    token = ""
    while True:
        page = stubs.gallery.ListGalleries(pb.ListGalleriesRequest(page_size=2, page_token=token))
        found += [one.name for one in page.galleries]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted([gallery, *names])
    for name in names:
        stubs.gallery.DeleteGallery(pb.DeleteGalleryRequest(name=name))


@pytest.mark.parametrize("metric", [shared_pb2.METRIC_EUCLIDEAN, shared_pb2.METRIC_COSINE])
@pytest.mark.parametrize("exact_below", ["100000", "0"], ids=["scan", "hnsw"])
def test_a_gallery_opens_again_after_a_restart_under_both_metrics(
    start_server: Callable[..., RunningServer],
    twin_file: Path,
    tmp_path: Path,
    metric: shared_pb2.Metric.ValueType,
    exact_below: str,
) -> None:
    flags = ("--model", twin_file, "--data-dir", tmp_path, "--exact-below", exact_below)
    answers = []
    for life in range(2):
        running = start_server(*flags)
        with running.channel() as channel:
            stubs = Stubs(channel)
            if life == 0:
                made = gallery_pb2.Gallery(name="faces", metric=metric)
                stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=made))
                items = [
                    pb.EnrollItem(
                        item=shared_pb2.Item(id=f"i{i}", subject=f"s{LABELS[i]}"), input=probe(i)
                    )
                    for i in range(24)
                ]
                stubs.gallery.Enroll(pb.EnrollRequest(gallery="faces", items=items))
            reply = stubs.gallery.Search(
                pb.SearchRequest(
                    gallery="faces", probes=[probe(i) for i in range(24)], top_k=5,
                    group_by=pb.GROUP_BY_ITEM,
                )
            )  # fmt: skip
            answers.append([
                [(hit.item.id, hit.score.distance) for hit in result.hits.hits]
                for result in reply.results
            ])  # fmt: skip
        assert running.stop() == 0
    assert answers[0] == answers[1]
    kind = Metric.EUCLIDEAN if metric == shared_pb2.METRIC_EUCLIDEAN else Metric.COSINE
    expected = np.sort(pairwise(VECTORS, VECTORS, kind), axis=1)[:, :5]
    got = np.array([[distance for _, distance in hits] for hits in answers[1]])
    np.testing.assert_allclose(got, expected, atol=1e-3)
