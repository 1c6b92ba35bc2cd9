"""Nothing of another space enters: every call that takes an embedding or names a gallery.

Also what the same space allows: the precisions of one twin serve each other's galleries. And where
no evidence says what a distance means, the answer is NOT_CALIBRATED.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve import manifest
from twinserve.distance import Metric
from twinserve.manifest import truncated_space_id
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import gallery_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as gallery

PIXELS = twins.classes_of_pixels(3, 2)[0]
GOOD = wire.image(PIXELS[0])
VECTOR = twins.embed_pixels(PIXELS)[0]


@dataclass(frozen=True)
class Spaces:
    """The files that are served, and the spaces that they give."""

    files: dict[str, Path]

    def __getitem__(self, name: str) -> str:
        """The space of a model, or of its truncation: `texts/8`."""
        model, _, dimension = name.partition("/")
        if model not in self.files:
            return model
        full = manifest.read(self.files[model]).space_id
        return truncated_space_id(full, int(dimension)) if dimension else full

    def serve(self, *models: str) -> list[str]:
        return [word for m in models for word in ("--model", f"{m}={self.files[m]}")]


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Spaces:
    folder = tmp_path_factory.mktemp("twins")
    made = {
        "small": twins.small_image_twin(),
        "small-int8": twins.small_image_twin(precision="int8"),
        "other": twins.small_image_twin("other", seed=4, calibrated=False),
        "texts": twins.small_text_twin(),
        "bare": twins.small_text_twin("bare", calibrated=False),
    }
    (folder / "full.onnx").write_bytes(made["texts"])
    full = manifest.read(folder / "full.onnx")
    # One whose truncation has no calibration.
    calibrations = tuple(c for c in full.calibrations if c.dimension == full.dimension)
    made["half"] = manifest.attach(
        made["texts"], replace(full, calibrations=calibrations), twins.text_tokenizer()
    )
    # One that is asked for another metric than it was calibrated in.
    made["turned"] = manifest.attach(
        made["texts"], replace(full, metric=Metric.EUCLIDEAN), twins.text_tokenizer()
    )
    files = {name: folder / f"{name}.onnx" for name in made}
    for name, twin in made.items():
        files[name].write_bytes(twin)
    return Spaces(files)


def start(spaces: Spaces, folder: Path, *models: str) -> RunningServer:
    return conftest.start(*spaces.serve(*models), "--data-dir", folder)


@pytest.fixture(scope="module")
def stubs(spaces: Spaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    """Serves all, with a gallery of pictures, one of texts, and one of their truncation."""
    running = start(spaces, tmp_path_factory.mktemp("data"), *spaces.files)
    with running.channel() as channel:
        stubs = Stubs(channel)
        create(stubs, "pictures", "small")
        enroll(stubs, "pictures", GOOD)
        create(stubs, "questions", "texts")
        enroll(stubs, "questions", shared_pb2.Input(text="word1"))
        create(stubs, "short", "texts", dimension=8)
        enroll(stubs, "short", shared_pb2.Input(text="word1"))
        yield stubs
    running.kill()


def create(
    stubs: Stubs, name: str, model: str, metric: int = 0, dimension: int = 0
) -> gallery_pb2.Gallery:
    made = gallery_pb2.Gallery(
        name=name,
        model=model,
        metric=metric,  # type: ignore[arg-type]
        dimension=dimension,
    )
    reply = stubs.gallery.CreateGallery(gallery.CreateGalleryRequest(gallery=made))
    answer: gallery_pb2.Gallery = reply.gallery
    return answer


def enroll(stubs: Stubs, name: str, one: shared_pb2.Input) -> gallery.EnrollResponse:
    item = gallery.EnrollItem(item=shared_pb2.Item(id="a", subject="s"), input=one)
    reply: gallery.EnrollResponse = stubs.gallery.Enroll(
        gallery.EnrollRequest(gallery=name, items=[item])
    )
    return reply


def search(stubs: Stubs, name: str, one: shared_pb2.Input) -> gallery.SearchResponse:
    reply: gallery.SearchResponse = stubs.gallery.Search(
        gallery.SearchRequest(gallery=name, probes=[one], exact=True)
    )
    return reply


def verify(stubs: Stubs, name: str, one: shared_pb2.Input) -> gallery.VerifyResponse:
    reply: gallery.VerifyResponse = stubs.gallery.Verify(
        gallery.VerifyRequest(gallery=name, subject="s", probe=one)
    )
    return reply


def embed(
    stubs: Stubs, model: str, one: shared_pb2.Input, dimensions: int | None = None
) -> pb.EmbedResponse:
    options = pb.EmbedOptions(dimensions=dimensions)
    reply: pb.EmbedResponse = stubs.embedding.Embed(
        pb.EmbedRequest(model=model, inputs=[one], options=options)
    )
    return reply


def compare(
    stubs: Stubs, model: str, first: shared_pb2.Input, second: shared_pb2.Input, **more: Any
) -> pb.CompareResponse:
    pairs = [pb.Pair(first=first, second=second)]
    reply: pb.CompareResponse = stubs.embedding.Compare(
        pb.CompareRequest(model=model, pairs=pairs, **more)
    )
    return reply


def facts(status: status_pb2.Status) -> dict[str, str]:
    found = dict(wire.detail(status, error_details_pb2.ErrorInfo).metadata)
    del found["request_id"]
    return found


def ready(spaces: Spaces, space: str) -> shared_pb2.Input:
    """An embedding that says it is of a space, with as many values as that has."""
    size = int(space.partition("/")[2] or len(VECTOR))
    return wire.ready(VECTOR[:size], spaces[space])


Call = Callable[[Stubs, shared_pb2.Input], object]

# The call, the space that the embedding in it is of, and the space that the call is done in.
FOREIGN: dict[str, tuple[Call, str, str]] = {
    "Embed": (lambda s, e: embed(s, "small", e), "other", "small"),
    "Embed, no space given": (lambda s, e: embed(s, "small", e), "", "small"),
    "Embed, truncated where full is asked for": (
        lambda s, e: embed(s, "texts", e),
        "texts/8",
        "texts",
    ),
    "Embed, full where truncated is asked for": (
        lambda s, e: embed(s, "texts", e, 8),
        "texts",
        "texts/8",
    ),
    "Compare, first": (lambda s, e: compare(s, "small", e, GOOD), "other", "small"),
    "Compare, second": (lambda s, e: compare(s, "small", GOOD, e), "other", "small"),
    "Compare, a truncation that the model does not have": (
        lambda s, e: compare(s, "small", GOOD, e),
        "small/8",
        "small",
    ),
    "Compare, full where truncated is asked for": (
        lambda s, e: compare(s, "texts", e, e, dimensions=8),
        "texts",
        "texts/8",
    ),
    "Compare, truncated where full is asked for": (
        lambda s, e: compare(s, "texts", e, e, dimensions=16),
        "texts/8",
        "texts",
    ),
    "Enroll": (lambda s, e: enroll(s, "pictures", e), "other", "small"),
    "Enroll, no space given": (lambda s, e: enroll(s, "pictures", e), "", "small"),
    "Enroll, truncated": (lambda s, e: enroll(s, "questions", e), "texts/8", "texts"),
    "Search": (lambda s, e: search(s, "pictures", e), "other", "small"),
    "Search, of another modality's model": (
        lambda s, e: search(s, "questions", e),
        "small",
        "texts",
    ),
    "Search, truncated": (lambda s, e: search(s, "questions", e), "texts/8", "texts"),
    "Enroll, full into a truncated gallery": (
        lambda s, e: enroll(s, "short", e),
        "texts",
        "texts/8",
    ),
    "Search, full in a truncated gallery": (
        lambda s, e: search(s, "short", e),
        "texts",
        "texts/8",
    ),
    "Verify, full in a truncated gallery": (
        lambda s, e: verify(s, "short", e),
        "texts",
        "texts/8",
    ),
    "Verify": (lambda s, e: verify(s, "pictures", e), "other", "small"),
    "Verify, truncated": (lambda s, e: verify(s, "questions", e), "texts/8", "texts"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_embedding_of_another_space_is_refused_with_both_ids(
    stubs: Stubs, spaces: Spaces, name: str
) -> None:
    call, given, wanted = FOREIGN[name]
    with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        call(stubs, ready(spaces, given))
    assert wire.reason(refused.status) == "SPACE_MISMATCH"
    assert facts(refused.status) == {"space_id": spaces[given], "wanted_space_id": spaces[wanted]}
    assert spaces[wanted] in refused.status.message
    assert wire.field(refused.status).endswith(".embedding")


def test_a_pair_of_two_truncations_is_refused_and_the_first_decides(
    stubs: Stubs, spaces: Spaces
) -> None:
    full, cut = ready(spaces, "texts"), ready(spaces, "texts/8")
    for first, second, given, wanted in (
        (full, cut, "texts/8", "texts"),
        (cut, full, "texts", "texts/8"),
    ):
        with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
            compare(stubs, "texts", first, second)
        assert facts(refused.status)["space_id"] == spaces[given]
        assert facts(refused.status)["wanted_space_id"] == spaces[wanted]
        assert wire.field(refused.status) == "pairs[0].second.embedding"


def test_a_gallery_of_a_truncation_enrols_and_finds_in_that_space(
    stubs: Stubs, spaces: Spaces
) -> None:
    made = stubs.gallery.GetGallery(gallery.GetGalleryRequest(name="short")).gallery
    assert (made.dimension, made.space_id) == (8, spaces["texts/8"])
    probe = shared_pb2.Input(text="word1 word2")
    cut = embed(stubs, "texts", probe, 8).results[0].embedding
    enrolled = embed(stubs, "texts", shared_pb2.Input(text="word1"), 8).results[0].embedding
    wanted = 1.0 - float(np.dot(cut.values, enrolled.values))
    # Texts are cut on the way in, and an embedding of the truncation enters as it is.
    for one in (probe, shared_pb2.Input(embedding=cut)):
        (hit,) = search(stubs, "short", one).results[0].hits.hits
        assert hit.score.distance == pytest.approx(wanted, abs=1e-6)
        assert verify(stubs, "short", one).score.distance == pytest.approx(wanted, abs=1e-6)
    full = search(stubs, "questions", probe).results[0].hits.hits[0]
    assert abs(full.score.distance - wanted) > 1e-3
    calibration = manifest.read(spaces.files["texts"]).calibration(8)
    assert calibration is not None
    point = calibration.points[0]
    assert verify(stubs, "short", probe).decision.threshold in {
        p.threshold for p in calibration.points
    }
    assert point.threshold > 0


def test_a_gallery_of_a_dimension_that_the_twin_does_not_have_is_refused(stubs: Stubs) -> None:
    for dimension in (5, 17, -8):
        with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            create(stubs, "crooked", "texts", dimension=dimension)
        assert wire.field(refused.status) == "gallery.dimension"
        assert f"dimension is {dimension}; model texts gives [8, 16]" in refused.status.message


def test_asking_for_the_full_dimension_names_the_same_gallery(stubs: Stubs, spaces: Spaces) -> None:
    assert create(stubs, "questions", "texts", dimension=16).space_id == spaces["texts"]
    with Refused(grpc.StatusCode.ALREADY_EXISTS):
        create(stubs, "questions", "texts", dimension=8)


def test_a_pair_of_texts_is_compared_in_the_dimension_asked_for(
    stubs: Stubs, spaces: Spaces
) -> None:
    pair = shared_pb2.Input(text="word1 word2"), shared_pb2.Input(text="word2 word3")
    full = compare(stubs, "texts", *pair)
    cut = compare(stubs, "texts", *pair, dimensions=8)
    assert (full.space_id, cut.space_id) == (spaces["texts"], spaces["texts/8"])
    vectors = [embed(stubs, "texts", one, 8).results[0].embedding.values for one in pair]
    wanted = 1.0 - float(np.dot(*vectors))
    assert cut.results[0].comparison.score.distance == pytest.approx(wanted, abs=1e-6)
    assert full.results[0].comparison.score.distance != pytest.approx(wanted, abs=1e-3)
    for dimensions in (0, 5):
        with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            compare(stubs, "texts", *pair, dimensions=dimensions)
        assert wire.field(refused.status) == "dimensions"


def test_a_foreign_embedding_fails_alone_among_others(stubs: Stubs, spaces: Spaces) -> None:
    foreign = ready(spaces, "other")
    request = gallery.SearchRequest(gallery="pictures", probes=[foreign, GOOD], exact=True)
    reply = stubs.gallery.Search(request)
    assert [r.WhichOneof("result") for r in reply.results] == ["error", "hits"]
    assert wire.reason(reply.results[0].error) == "SPACE_MISMATCH"


# What needs the gallery's own model, where that is not served any more.
ORPHANED: dict[str, Call] = {
    "Enroll": lambda s, e: enroll(s, "pictures", e),
    "Search": lambda s, e: search(s, "pictures", e),
    "Verify": lambda s, e: verify(s, "pictures", e),
}


@pytest.fixture(scope="module")
def enrolled(spaces: Spaces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server of `small` that has stopped."""
    folder = tmp_path_factory.mktemp("data")
    running = start(spaces, folder, "small")
    with running.channel() as channel:
        create(Stubs(channel), "pictures", "small")
        enroll(Stubs(channel), "pictures", GOOD)
    assert running.stop() == 0
    return folder


@pytest.fixture
def copied(enrolled: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(enrolled, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def orphaned(
    spaces: Spaces, enrolled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stubs]:
    """That gallery, reopened by a server of another twin under the same name."""
    folder = tmp_path_factory.mktemp("orphaned") / "data"
    shutil.copytree(enrolled, folder)
    running = conftest.start("--model", f"small={spaces.files['other']}", "--data-dir", folder)
    with running.channel() as channel:
        yield Stubs(channel)
    running.kill()


@pytest.mark.parametrize("name", ORPHANED)
def test_a_gallery_whose_twin_is_not_served_any_more_takes_no_raw_input(
    orphaned: Stubs, spaces: Spaces, name: str
) -> None:
    with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        ORPHANED[name](orphaned, GOOD)
    assert wire.reason(refused.status) == "SPACE_MISMATCH"
    assert facts(refused.status) == {
        "space_id": spaces["other"],
        "wanted_space_id": spaces["small"],
    }
    with Refused(grpc.StatusCode.FAILED_PRECONDITION) as refused:
        ORPHANED[name](orphaned, ready(spaces, "other"))
    assert facts(refused.status) == {
        "space_id": spaces["other"],
        "wanted_space_id": spaces["small"],
    }


def test_such_a_gallery_still_takes_embeddings_of_its_own_space(
    orphaned: Stubs, spaces: Spaces
) -> None:
    (result,) = search(orphaned, "pictures", ready(spaces, "small")).results
    assert result.hits.hits[0].score.distance == pytest.approx(0, abs=1e-4)


# ---- precisions ------------------------------------------------------------------------------


def test_a_gallery_made_in_one_precision_is_searched_in_another(
    spaces: Spaces, copied: Path
) -> None:
    running = start(spaces, copied, "small-int8")
    with running.channel() as channel:
        reply = search(Stubs(channel), "pictures", GOOD)
        (hit,) = reply.results[0].hits.hits
        assert 0 < hit.score.distance < 0.01, "the weights were rounded in one of the two"
        assert reply.model_version == "small-int8@1"
        answer = verify(Stubs(channel), "pictures", GOOD)
        assert answer.decision.outcome == shared_pb2.OUTCOME_MATCH
    running.kill()


def test_an_embedding_of_one_precision_enters_beside_another(stubs: Stubs) -> None:
    made = [embed(stubs, model, GOOD) for model in ("small", "small-int8")]
    assert made[0].space_id == made[1].space_id
    some, others = (reply.results[0].embedding for reply in made)
    assert 0 < np.abs(np.array(some.values) - np.array(others.values)).max() < 0.01
    pair = shared_pb2.Input(embedding=some), shared_pb2.Input(embedding=others)
    (result,) = compare(stubs, "small-int8", *pair).results
    assert result.comparison.decision.outcome == shared_pb2.OUTCOME_MATCH
    create(stubs, "mixed", "small-int8")
    enroll(stubs, "mixed", pair[0])
    assert verify(stubs, "mixed", GOOD).model_version == "small-int8@1"


def test_two_precisions_of_one_twin_need_names_of_their_own(spaces: Spaces, tmp_path: Path) -> None:
    files = ["--model", spaces.files["small"], "--model", spaces.files["small-int8"]]
    with pytest.raises(AssertionError, match="small@1 is given in two precisions, fp32 and int8"):
        conftest.start(*files, "--data-dir", tmp_path)


# ---- no evidence -----------------------------------------------------------------------------


def test_a_twin_without_calibration_tells_the_distance_only(stubs: Stubs) -> None:
    one, other = shared_pb2.Input(text="word1 word2"), shared_pb2.Input(text="word2 word3")
    (result,) = compare(stubs, "bare", one, other).results
    assert result.comparison.score.distance > 0
    assert not result.comparison.score.HasField("probability")
    assert not result.comparison.score.HasField("log_likelihood_ratio")
    assert result.comparison.decision == shared_pb2.Decision(
        outcome=shared_pb2.OUTCOME_NOT_CALIBRATED
    )


def test_a_threshold_of_the_requests_own_needs_no_calibration(stubs: Stubs) -> None:
    one, other = shared_pb2.Input(text="word1 word2"), shared_pb2.Input(text="word2 word3")
    rule = shared_pb2.DecisionRule(threshold=2.0)
    (result,) = compare(stubs, "bare", one, other, rule=rule).results
    assert result.comparison.decision.outcome == shared_pb2.OUTCOME_MATCH
    assert not result.comparison.decision.HasField("false_accept_rate")


@pytest.mark.parametrize("rate", [1e-9, 1e-5])
def test_a_rate_below_the_evidence_is_not_extrapolated(stubs: Stubs, rate: float) -> None:
    rule = shared_pb2.DecisionRule(false_accept_rate=rate)
    (result,) = compare(stubs, "small", GOOD, wire.image(PIXELS[1]), rule=rule).results
    assert result.comparison.decision.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED
    assert result.comparison.score.HasField("probability"), "the likelihood stands on its own"


def test_thresholds_do_not_carry_over_to_another_metric(stubs: Stubs) -> None:
    create(stubs, "angles", "small", shared_pb2.METRIC_COSINE)
    enroll(stubs, "angles", GOOD)
    reply = verify(stubs, "angles", wire.image(PIXELS[1]))
    assert reply.decision.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED
    assert not reply.score.HasField("probability")
    same = verify(stubs, "pictures", wire.image(PIXELS[1]))
    assert same.decision.outcome != shared_pb2.OUTCOME_NOT_CALIBRATED


def test_a_calibration_in_another_metric_than_the_twins_decides_nothing(stubs: Stubs) -> None:
    one, other = shared_pb2.Input(text="word1 word2"), shared_pb2.Input(text="word2 word3")
    (result,) = compare(stubs, "turned", one, other).results
    assert result.comparison.decision.outcome == shared_pb2.OUTCOME_NOT_CALIBRATED
    assert not result.comparison.score.HasField("log_likelihood_ratio")


def test_a_truncation_without_calibration_of_its_own_is_not_calibrated(
    stubs: Stubs, spaces: Spaces
) -> None:
    cut = ready(spaces, "texts/8")
    for model, outcome in (
        ("texts", shared_pb2.OUTCOME_MATCH),
        ("half", shared_pb2.OUTCOME_NOT_CALIBRATED),
    ):
        (result,) = compare(stubs, model, cut, cut).results
        assert result.comparison.decision.outcome == outcome
