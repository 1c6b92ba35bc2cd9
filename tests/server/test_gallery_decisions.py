"""What Search and Verify decide over the wire, and the evidence that they state for it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import twins
from tests.conftest import RunningServer, start
from tests.server import wire
from tests.server.wire import Stubs
from twinserve import identification, manifest
from twinserve.distance import Metric, pairwise
from twinserve.identification import Impostors
from twinserve.manifest import Calibration, Manifest
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

SUBJECTS, DIMENSION = 300, 16
# Likenesses as the small twin gives them: its own vectors of noisy copies of random pictures.
PIXELS, _ = twins.classes_of_pixels(SUBJECTS + 40, 1, seed=21, noise=0)
VECTORS = twins.embed_pixels(PIXELS)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Manifest]]:
    """`known` is calibrated for single items and pairs of items, `unknown` for nothing."""
    folder = tmp_path_factory.mktemp("twins")
    made = {}
    for name, calibrated, seed in (("known", True, 3), ("unknown", False, 4)):
        path = folder / f"{name}.onnx"
        data = twins.small_image_twin(name, calibrated=calibrated, seed=seed)
        path.write_bytes(data)
        read = manifest.read(path)
        if calibrated:
            (single,) = read.calibrations
            # Of two items the nearer one lies nearer: the same rates at smaller distances.
            of_two = replace(
                single,
                aggregation="nearest_of_2",
                points=tuple(replace(p, threshold=0.9 * p.threshold) for p in single.points),
                intercept=single.intercept - 1.0,
            )
            read = replace(read, calibrations=(single, of_two))
            path.write_bytes(manifest.attach(data, read))
        made[name] = (path, read)
    return made


@pytest.fixture(scope="module")
def deciding(
    manifests: dict[str, tuple[Path, Manifest]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    flags = [flag for path, _ in manifests.values() for flag in ("--model", path)]
    running = start(*flags, "--data-dir", tmp_path_factory.mktemp("data"))
    yield running
    running.kill()


@pytest.fixture(scope="module")
def stubs(deciding: RunningServer, manifests: dict[str, tuple[Path, Manifest]]) -> Iterator[Stubs]:
    """With a gallery of each twin, `SUBJECTS` subjects of one item each, and one of few."""
    with deciding.channel() as channel:
        stubs = Stubs(channel)
        for name, (_, read) in manifests.items():
            for gallery, count in ((name, SUBJECTS), (f"{name}-few", 5)):
                made = gallery_pb2.Gallery(name=gallery, model=name)
                stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=made))
                enroll(stubs, gallery, VECTORS[:count], read.space_id)
        yield stubs


def enroll(
    stubs: Stubs, gallery: str, vectors: NDArray[np.float32], space: str, subject: str = ""
) -> None:
    stubs.gallery.Enroll(
        pb.EnrollRequest(
            gallery=gallery,
            items=[
                pb.EnrollItem(
                    item=shared_pb2.Item(id=f"{subject}{n}", subject=subject or f"s{n}"),
                    input=wire.ready(vector, space),
                )
                for n, vector in enumerate(vectors)
            ],
        )
    )


def space_of(stubs: Stubs, gallery: str) -> str:
    status = stubs.gallery.GetGallery(pb.GetGalleryRequest(name=gallery)).gallery
    return str(status.space_id)


def search(
    stubs: Stubs, gallery: str, vectors: NDArray[np.float32], **rule: float
) -> list[pb.Hits]:
    space = space_of(stubs, gallery)
    reply = stubs.gallery.Search(
        pb.SearchRequest(
            gallery=gallery,
            probes=[wire.ready(vector, space) for vector in vectors],
            top_k=1,
            rule=shared_pb2.DecisionRule(**rule) if rule else None,
        )
    )
    return [result.hits for result in reply.results]


def by_hand() -> Impostors:
    """The gallery's items against all others, by the definition."""
    distances = pairwise(VECTORS[:SUBJECTS], VECTORS[:SUBJECTS], Metric.EUCLIDEAN)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)[:, :2]
    nearest = np.take_along_axis(distances, order, axis=1)
    return Impostors(np.arange(SUBJECTS), nearest, order, SUBJECTS, SUBJECTS)


@pytest.mark.parametrize("gallery", ["known", "unknown"])
def test_a_search_is_governed_by_the_gallerys_own_strangers(stubs: Stubs, gallery: str) -> None:
    point = identification.at_rate(by_hand(), 0.1)
    assert point is not None
    strangers = VECTORS[SUBJECTS:]
    found = search(stubs, gallery, strangers, false_positive_identification_rate=0.1)
    nearest = pairwise(strangers, VECTORS[:SUBJECTS], Metric.EUCLIDEAN).min(axis=1)
    for hits, distance in zip(found, nearest, strict=True):
        assert hits.evidence == shared_pb2.EVIDENCE_GALLERY
        assert hits.threshold == pytest.approx(point.threshold, rel=1e-6)
        assert hits.false_positive_identification_rate == pytest.approx(point.rate)
        assert hits.false_positive_identification_rate_upper == pytest.approx(point.rate_upper)
        assert hits.false_positive_identification_rate <= 0.1
        assert hits.false_positive_identification_rate_upper > 0.1
        # A probe that matches anybody matches one at least.
        assert hits.expected_false_matches >= hits.false_positive_identification_rate * 0.99
        assert hits.expected_false_matches < 1
        match = distance <= point.threshold
        expected = shared_pb2.OUTCOME_MATCH if match else shared_pb2.OUTCOME_NO_MATCH
        assert hits.outcome == expected
        assert hits.hits[0].match == match


def test_a_rate_beyond_all_evidence_is_not_calibrated(stubs: Stubs) -> None:
    for gallery in ("known", "unknown", "unknown-few"):
        (hits,) = search(stubs, gallery, VECTORS[:1], false_positive_identification_rate=1e-6)
        assert hits.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED
        assert hits.evidence == shared_pb2.EVIDENCE_UNSPECIFIED
        assert hits.threshold == 0
        assert not hits.HasField("false_positive_identification_rate")
        assert not hits.HasField("expected_false_matches")
        assert not hits.hits[0].match
        assert hits.hits[0].item.id == "0"


def test_a_gallery_too_small_to_tell_is_governed_by_the_models_evidence(
    stubs: Stubs, manifests: dict[str, tuple[Path, Manifest]]
) -> None:
    calibration = manifests["known"][1].calibration(DIMENSION)
    assert calibration is not None
    (hits,) = search(stubs, "known-few", VECTORS[:1], false_positive_identification_rate=0.1)
    point = max(
        (p for p in calibration.points if p.false_accept_rate <= 0.1 / 5),
        key=lambda p: p.false_accept_rate,
    )
    assert hits.evidence == shared_pb2.EVIDENCE_MODEL
    assert hits.threshold == point.threshold
    assert hits.false_positive_identification_rate == pytest.approx(5 * point.false_accept_rate)
    assert hits.expected_false_matches == pytest.approx(5 * point.false_accept_rate)
    assert hits.outcome == shared_pb2.OUTCOME_MATCH
    (hits,) = search(stubs, "unknown-few", VECTORS[:1])
    assert hits.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED


def test_a_threshold_of_the_requests_own_says_what_it_lets_in(stubs: Stubs) -> None:
    threshold = float(np.quantile(by_hand().distance[:, 0], 0.3))
    for gallery in ("known", "unknown"):
        (hits,) = search(stubs, gallery, VECTORS[:1], threshold=threshold)
        assert hits.evidence == shared_pb2.EVIDENCE_REQUEST
        assert hits.threshold == threshold
        assert hits.false_positive_identification_rate == pytest.approx(0.3, abs=0.01)
    (hits,) = search(stubs, "unknown-few", VECTORS[:1], threshold=threshold)
    assert hits.outcome == shared_pb2.OUTCOME_MATCH
    assert not hits.HasField("false_positive_identification_rate")


def test_a_filtered_search_states_the_whole_gallerys_figures(stubs: Stubs) -> None:
    made = gallery_pb2.Gallery(
        name="filtered",
        model="unknown",
        metadata_keys=[gallery_pb2.MetadataKey(key="half", type=gallery_pb2.METADATA_TYPE_FLAG)],
    )
    stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=made))
    space = space_of(stubs, "filtered")
    items = [
        pb.EnrollItem(
            item=shared_pb2.Item(
                id=str(n), metadata={"half": shared_pb2.MetadataValue(flag=n % 2 == 0)}
            ),
            input=wire.ready(vector, space),
        )
        for n, vector in enumerate(VECTORS[:SUBJECTS])
    ]
    stubs.gallery.Enroll(pb.EnrollRequest(gallery="filtered", items=items))
    flag = shared_pb2.MetadataValue(flag=True)
    chosen = shared_pb2.Filter(clause=shared_pb2.Clause(key="half", equals=flag))
    rule = shared_pb2.DecisionRule(false_positive_identification_rate=0.1)
    probes = [wire.ready(vector, space) for vector in VECTORS[:2]]
    request = pb.SearchRequest(gallery="filtered", probes=probes, rule=rule, filter=chosen)
    point = identification.at_rate(by_hand(), 0.1)
    assert point is not None
    here, not_here = (result.hits for result in stubs.gallery.Search(request).results)
    assert here.threshold == pytest.approx(point.threshold, rel=1e-6)
    assert here.hits[0].item.id == "0"
    assert not_here.outcome == shared_pb2.OUTCOME_NO_MATCH


def verify(
    stubs: Stubs, gallery: str, subject: str, vector: NDArray[np.float32]
) -> pb.VerifyResponse:
    return stubs.gallery.Verify(
        pb.VerifyRequest(
            gallery=gallery, subject=subject, probe=wire.ready(vector, space_of(stubs, gallery))
        )
    )


def llr(calibration: Calibration, distance: float) -> float:
    return calibration.intercept - calibration.slope * distance


def test_verify_is_judged_by_the_nearest_of_as_many_items(
    stubs: Stubs, manifests: dict[str, tuple[Path, Manifest]]
) -> None:
    read = manifests["known"][1]
    single, of_two = read.calibrations
    rate = single.default_far
    for count, calibration in ((1, single), (2, of_two)):
        enroll(stubs, "known-few", VECTORS[20 : 20 + count], read.space_id, f"of{count}")
        reply = verify(stubs, "known-few", f"of{count}", VECTORS[30])
        assert reply.items_compared == count
        point = min(
            (p for p in calibration.points if p.false_accept_rate <= rate),
            key=lambda p: -p.false_accept_rate,
        )
        assert reply.decision.threshold == point.threshold
        distance = reply.score.distance
        assert reply.score.log_likelihood_ratio == pytest.approx(llr(calibration, distance))


def test_a_hit_is_judged_by_as_many_items_as_its_subject_has(
    stubs: Stubs, manifests: dict[str, tuple[Path, Manifest]]
) -> None:
    read = manifests["known"][1]
    single, of_two = read.calibrations
    made = gallery_pb2.Gallery(name="sizes", model="known")
    stubs.gallery.CreateGallery(pb.CreateGalleryRequest(gallery=made))
    for count in (1, 2, 3):
        enroll(
            stubs, "sizes", VECTORS[10 * count : 10 * count + count], read.space_id, f"of{count}"
        )
    probe = wire.ready(VECTORS[5], read.space_id)
    by_subject = stubs.gallery.Search(pb.SearchRequest(gallery="sizes", probes=[probe]))
    scores = {hit.item.subject: hit.score for hit in by_subject.results[0].hits.hits}
    for subject, calibration in (("of1", single), ("of2", of_two)):
        expected = llr(calibration, scores[subject].distance)
        assert scores[subject].log_likelihood_ratio == pytest.approx(expected)
    assert not scores["of3"].HasField("log_likelihood_ratio")
    request = pb.SearchRequest(gallery="sizes", probes=[probe], group_by=pb.GROUP_BY_ITEM)
    hits = stubs.gallery.Search(request).results[0].hits.hits
    assert len(hits) == 6
    for hit in hits:
        expected = llr(single, hit.score.distance)
        assert hit.score.log_likelihood_ratio == pytest.approx(expected)


def test_verify_against_more_items_than_were_measured_divides_the_rate_and_gives_no_ratio(
    stubs: Stubs, manifests: dict[str, tuple[Path, Manifest]]
) -> None:
    read = manifests["known"][1]
    single, _ = read.calibrations
    enroll(stubs, "known-few", VECTORS[20:23], read.space_id, "of3")
    reply = verify(stubs, "known-few", "of3", VECTORS[30])
    assert reply.items_compared == 3
    (point,) = (p for p in single.points if p.threshold == reply.decision.threshold)
    assert point.false_accept_rate <= single.default_far / 3 * 1.01
    # Stated is the rate of the decision: that any of the three is accepted.
    of_any = 1 - (1 - point.false_accept_rate) ** 3
    assert reply.decision.false_accept_rate == pytest.approx(of_any)
    assert of_any <= single.default_far * (1 + 1e-9)
    assert not reply.score.HasField("log_likelihood_ratio")
    assert not reply.score.HasField("probability")


def test_a_mean_is_held_to_the_threshold_of_the_nearest_and_has_no_ratio(
    stubs: Stubs, manifests: dict[str, tuple[Path, Manifest]]
) -> None:
    space = manifests["known"][1].space_id
    stubs.gallery.CreateGallery(
        pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name="means", model="known"))
    )
    enroll(stubs, "means", VECTORS[[40, 41]], space, "two")
    enroll(stubs, "means", VECTORS[[42]], space, "one")
    probe = wire.ready(VECTORS[40], space)
    far = float(pairwise(VECTORS[40:41], VECTORS[41:43], Metric.EUCLIDEAN)[0, 0])

    def asked(mean_of: int, threshold: float | None = None) -> pb.Hits:
        rule = None if threshold is None else shared_pb2.DecisionRule(threshold=threshold)
        request = pb.SearchRequest(gallery="means", probes=[probe], mean_of=mean_of, rule=rule)
        return stubs.gallery.Search(request).results[0].hits

    def verified(mean_of: int, threshold: float | None = None) -> pb.VerifyResponse:
        rule = None if threshold is None else shared_pb2.DecisionRule(threshold=threshold)
        return stubs.gallery.Verify(
            pb.VerifyRequest(
                gallery="means", subject="two", probe=probe, mean_of=mean_of, rule=rule
            )
        )

    for mean_of in (0, 1):
        scores = {hit.item.subject: hit.score for hit in asked(mean_of).hits}
        assert scores["two"].distance == verified(mean_of).score.distance == 0
        assert scores["two"].HasField("log_likelihood_ratio")
        assert verified(mean_of).score.HasField("probability")
    for mean_of in (2, 100):
        found, reply = asked(mean_of), verified(mean_of)
        scores = {hit.item.subject: hit.score for hit in found.hits}
        assert scores["two"].distance == reply.score.distance == pytest.approx(far / 2)
        assert (reply.item_id, reply.items_compared) == ("two0", 2)
        assert {hit.item.id for hit in found.hits} == {"two0", "one0"}
        for score in (*scores.values(), reply.score):
            assert not score.HasField("log_likelihood_ratio")
            assert not score.HasField("probability")
        # The rule gives the threshold that it gives without a mean, and the mean is held to it.
        assert found.threshold == asked(1).threshold
        assert reply.decision.threshold == verified(1).decision.threshold
        assert found.expected_false_matches == asked(1).expected_false_matches
    near = shared_pb2.OUTCOME_MATCH
    assert [asked(m, far / 4).outcome == near for m in (1, 2)] == [True, False]
    assert [verified(m, far / 4).decision.outcome == near for m in (1, 2)] == [True, False]
    assert [asked(m, far * 0.51).hits[0].match for m in (1, 2)] == [True, True]


def test_the_metrics_count_what_searches_were_decided_by(
    stubs: Stubs, deciding: RunningServer
) -> None:
    search(stubs, "known", VECTORS[:3], false_positive_identification_rate=0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{deciding.http_port}/metrics") as reply:
        text = reply.read().decode()
    line = next(one for one in text.splitlines() if 'decisions_total{evidence="gallery"}' in one)
    assert float(line.rsplit(" ", 1)[1]) >= 3
    assert "twinserve_gallery_measuring_seconds" in text
