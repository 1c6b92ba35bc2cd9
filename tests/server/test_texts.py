"""Texts through a real server: fidelity, prompts, limits, truncation, decisions, the client."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import conftest, twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve import decision, manifest
from twinserve.client import Client, EnrollItem, Text
from twinserve.distance import Metric, paired, unit
from twinserve.errors import InvalidInput, LimitExceeded
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import gallery_pb2, gallery_service_pb2, model_service_pb2, shared_pb2


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("twin") / "texts.onnx"
    path.write_bytes(twins.small_text_twin())
    return path


@pytest.fixture(scope="module")
def text_server(
    text_file: Path, twin_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Serves the small text twin, the same with rules of its own as `strict`, and pictures."""
    strict = tmp_path_factory.mktemp("strict") / "strict.onnx"
    strict.write_bytes(
        twins.small_text_twin("strict", truncate=False, default_prompt="query", calibrated=False)
    )
    running = conftest.start(
        *("--model", text_file, "--model", strict, "--model", twin_file),
        *("--data-dir", tmp_path_factory.mktemp("data")),
    )
    yield running
    running.kill()


@pytest.fixture(scope="module")
def stubs(text_server: RunningServer) -> Iterator[Stubs]:
    with text_server.channel() as channel:
        yield Stubs(channel)


@pytest.fixture(scope="module")
def client(text_server: RunningServer) -> Iterator[Client]:
    with Client(text_server.target, timeout=20) as made:
        yield made


def text(words: str, prompt: str | None = None) -> shared_pb2.Input:
    return shared_pb2.Input(text=words, prompt=prompt)


def embed(
    stubs: Stubs, inputs: list[shared_pb2.Input], model: str = "texts", **options: object
) -> pb.EmbedResponse:
    request = pb.EmbedRequest(model=model, inputs=inputs, options=pb.EmbedOptions(**options))  # type: ignore[arg-type]
    reply: pb.EmbedResponse = stubs.embedding.Embed(request)
    return reply


def vectors(reply: pb.EmbedResponse) -> np.ndarray:
    return np.array([result.embedding.values for result in reply.results], np.float32)


# ---- fidelity --------------------------------------------------------------------------------


def test_a_text_alone_gives_what_its_words_give(stubs: Stubs) -> None:
    texts, _ = twins.classes_of_texts(10, 2)
    got = np.concatenate([vectors(embed(stubs, [text(words)])) for words in texts])
    np.testing.assert_allclose(got, twins.embed_texts(texts), atol=1e-5)


def test_texts_of_all_lengths_from_32_clients_give_what_they_give_alone(
    stubs: Stubs, text_server: RunningServer
) -> None:
    texts, _ = twins.classes_of_texts(100, 6)
    generator = np.random.default_rng(5)
    # Calls of one to five texts; what comes together shares padded runs.
    cuts = np.cumsum(generator.integers(1, 6, len(texts)))
    calls = [call.tolist() for call in np.split(np.array(texts), cuts) if len(call)]
    largest = 0

    def one(call: list[str]) -> np.ndarray:
        nonlocal largest
        reply = embed(stubs, [text(words) for words in call])
        largest = max(largest, reply.timing.batch_rows)
        return vectors(reply)

    with ThreadPoolExecutor(32) as pool:
        got = np.concatenate(list(pool.map(one, calls)))
    np.testing.assert_allclose(got, twins.embed_texts(texts), atol=1e-5)
    assert largest > 5, "no call has more than five texts, so some shared a run"
    with urllib.request.urlopen(f"http://127.0.0.1:{text_server.http_port}/metrics") as page:
        counted = re.findall(
            r'^twinserve_tokens_total\{kind="(\w+)",model="texts"\} (\S+)$',
            page.read().decode(),
            re.M,
        )
    tokens = {kind: float(count) for kind, count in counted}
    assert tokens["text"] >= sum(min(len(words.split()) + 2, twins.MAX_TOKENS) for words in texts)
    assert 0 < tokens["padding"] < tokens["text"]


def test_a_call_of_many_texts_comes_back_in_order(stubs: Stubs) -> None:
    texts, _ = twins.classes_of_texts(100, 8)
    got = vectors(embed(stubs, [text(words) for words in texts]))
    np.testing.assert_allclose(got, twins.embed_texts(texts), atol=1e-5)


# ---- prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "prompt", "before"),
    [
        ("texts", None, ""),
        ("texts", "", ""),
        ("texts", "query", twins.PROMPTS["query"]),
        ("strict", None, twins.PROMPTS["query"]),
        ("strict", "", ""),
        ("strict", "passage", twins.PROMPTS["passage"]),
    ],
)
def test_the_prompt_asked_for_is_put_before_the_text(
    stubs: Stubs, model: str, prompt: str | None, before: str
) -> None:
    got = vectors(embed(stubs, [text("word1 word2", prompt)], model))
    np.testing.assert_allclose(got, twins.embed_texts(["word1 word2"], before), atol=1e-5)


def test_an_unknown_prompt_fails_its_own_text_at_its_field(stubs: Stubs) -> None:
    reply = embed(stubs, [text("word1"), text("word1", "nothing")])
    assert [result.WhichOneof("result") for result in reply.results] == ["embedding", "error"]
    error = reply.results[1].error
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert wire.field(error) == "inputs[1].prompt"
    assert "passage, query" in error.message


@pytest.mark.parametrize("model", ["small", "texts"])
def test_a_prompt_with_anything_but_a_text_is_refused(stubs: Stubs, model: str) -> None:
    space = stubs.model.GetModel(model_service_pb2.GetModelRequest(name=model)).model.space_id
    for one in (
        wire.image(np.zeros((28, 28, 1), np.uint8)),
        wire.tensor(np.zeros((28, 28), np.uint8)),
        wire.ready(np.ones(16), space),
    ):
        one.prompt = ""
        with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            embed(stubs, [one], model)
        assert wire.field(refused.status) == "inputs[0].prompt"


def test_identical_texts_are_embedded_once_unless_their_prompts_differ(stubs: Stubs) -> None:
    same, other = text("word5 word6"), text("word5 word6", "query")
    reply = embed(stubs, [same, other, same, same])
    assert reply.timing.batch_rows == 2
    defaults = [text("word5 word6"), text("word5 word6", "query")]
    assert embed(stubs, defaults, "strict").timing.batch_rows == 1, "the default is query"
    got = vectors(reply)
    np.testing.assert_array_equal(got[[0, 0]], got[[2, 3]])
    assert np.abs(got[0] - got[1]).max() > 0.01


# ---- limits ----------------------------------------------------------------------------------


def test_a_long_text_is_cut_by_the_models_rule_and_says_how_long_it_was(stubs: Stubs) -> None:
    words = " ".join(twins.WORDS[:30])
    reply = embed(stubs, [text(words), text("word1")])
    assert [(r.token_count, r.truncated) for r in reply.results] == [(32, True), (3, False)]
    np.testing.assert_allclose(vectors(reply), twins.embed_texts([words, "word1"]), atol=1e-5)


def test_a_call_can_refuse_long_texts_or_have_them_cut_against_the_models_rule(
    stubs: Stubs,
) -> None:
    words = " ".join(twins.WORDS[:30])
    reply = embed(stubs, [text("word1"), text(words)], truncate=False)
    error = reply.results[1].error
    assert wire.reason(error) == "LIMIT_EXCEEDED"
    assert wire.field(error) == "inputs[1].text"
    assert "32 tokens, the limit is 16" in error.message
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        embed(stubs, [text(words, "")], "strict")
    assert wire.reason(refused.status) == "LIMIT_EXCEEDED"
    assert embed(stubs, [text(words, "")], "strict", truncate=True).results[0].truncated


@pytest.mark.parametrize(
    ("words", "reason", "says"),
    [
        ("", "EMPTY_INPUT", "empty"),
        (" \n\t ", "EMPTY_INPUT", "blank"),
        ("word1 " * 11_000, "LIMIT_EXCEEDED", "66000 bytes, the limit is 65536"),
    ],
)
def test_a_text_outside_the_limits_is_refused_with_a_sentence(
    stubs: Stubs, words: str, reason: str, says: str
) -> None:
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        embed(stubs, [text(words)])
    assert wire.reason(refused.status) == reason
    assert wire.field(refused.status) == "inputs[0].text"
    assert says in refused.status.message


@pytest.mark.parametrize(
    ("model", "one", "kind"),
    [
        ("small", text("word1"), "text"),
        ("texts", wire.image(np.zeros((28, 28, 1), np.uint8)), "image"),
        ("texts", wire.tensor(np.zeros(3, np.int64)), "tensor"),
    ],
)
def test_an_input_of_another_modality_is_refused(
    stubs: Stubs, model: str, one: shared_pb2.Input, kind: str
) -> None:
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        embed(stubs, [one], model)
    assert wire.reason(refused.status) == "WRONG_MODALITY"
    assert wire.field(refused.status) == f"inputs[0].{kind}"


# ---- truncated dimensions --------------------------------------------------------------------


def test_a_truncated_embedding_is_the_first_coordinates_at_length_one_in_a_space_of_its_own(
    stubs: Stubs, text_file: Path
) -> None:
    texts, _ = twins.classes_of_texts(4, 1)
    reply = embed(stubs, [text(words) for words in texts], dimensions=8)
    full = manifest.read(text_file).space_id
    assert reply.space_id == manifest.truncated_space_id(full, 8) != full
    expected = unit(twins.embed_texts(texts)[:, :8].astype(np.float64))
    np.testing.assert_allclose(vectors(reply), expected, atol=1e-5)


@pytest.mark.parametrize("dimensions", [-1, 0, 7, 15, 17])
def test_a_dimension_that_the_twin_was_not_trained_for_is_refused(
    stubs: Stubs, dimensions: int
) -> None:
    with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
        embed(stubs, [text("word1")], dimensions=dimensions)
    assert wire.field(refused.status) == "options.dimensions"
    assert "[8, 16]" in refused.status.message


@pytest.mark.parametrize("dimension", [8, 16])
def test_compare_decides_by_the_calibration_of_the_dimension_it_is_done_in(
    stubs: Stubs, text_file: Path, dimension: int
) -> None:
    texts, _ = twins.classes_of_texts(2, 2)
    ready = embed(stubs, [text(words) for words in texts[:3]], dimensions=dimension)
    first, genuine, _ = (shared_pb2.Input(embedding=r.embedding) for r in ready.results)
    pairs = [pb.Pair(first=first, second=genuine), pb.Pair(first=text(texts[2]), second=first)]
    reply = stubs.embedding.Compare(pb.CompareRequest(model="texts", pairs=pairs))
    assert reply.space_id == ready.space_id
    calibration = manifest.read(text_file).calibration(dimension)
    assert calibration is not None
    limit = decision.limit(decision.Rule(), calibration)
    at = vectors(ready)
    expected = paired(at[[0, 2]], at[[1, 0]], Metric.COSINE)
    for result, distance in zip(reply.results, expected, strict=True):
        assert result.comparison.score.distance == pytest.approx(distance, abs=1e-6)
        assert result.comparison.decision.threshold == limit.threshold
        likelihood = decision.likelihood(distance, calibration, 0.5)
        assert result.comparison.score.probability == pytest.approx(
            likelihood.probability, abs=1e-4
        )


# ---- galleries -------------------------------------------------------------------------------


def test_an_item_enrolled_again_under_another_prompt_is_replaced(stubs: Stubs) -> None:
    stubs.gallery.CreateGallery(
        gallery_service_pb2.CreateGalleryRequest(
            gallery=gallery_pb2.Gallery(name="prompted", model="texts")
        )
    )

    def enroll(prompt: str | None) -> int:
        item = gallery_service_pb2.EnrollItem(
            item=shared_pb2.Item(id="a"), input=text("word1 word2", prompt)
        )
        request = gallery_service_pb2.EnrollRequest(gallery="prompted", items=[item])
        (result,) = stubs.gallery.Enroll(request).results
        return int(result.enrolled.change)

    assert enroll(None) == gallery_service_pb2.CHANGE_CREATED
    assert enroll(None) == gallery_service_pb2.CHANGE_UNCHANGED
    assert enroll("") == gallery_service_pb2.CHANGE_UNCHANGED, "no prompt is this twin's default"
    assert enroll("query") == gallery_service_pb2.CHANGE_REPLACED


def test_an_unknown_prompt_is_named_by_every_call_that_takes_inputs(stubs: Stubs) -> None:
    stubs.gallery.CreateGallery(
        gallery_service_pb2.CreateGalleryRequest(
            gallery=gallery_pb2.Gallery(name="fields", model="texts")
        )
    )
    good, bad = text("word1"), text("word1", "nothing")
    item = gallery_service_pb2.EnrollItem(item=shared_pb2.Item(subject="s"), input=good)
    stubs.gallery.Enroll(gallery_service_pb2.EnrollRequest(gallery="fields", items=[item]))
    item.input.CopyFrom(bad)
    pairs = [pb.Pair(first=good, second=bad)]
    calls = {
        "pairs[0].second.prompt": lambda: stubs.embedding.Compare(
            pb.CompareRequest(model="texts", pairs=pairs)
        ),
        "items[0].input.prompt": lambda: stubs.gallery.Enroll(
            gallery_service_pb2.EnrollRequest(gallery="fields", items=[item])
        ),
        "probes[0].prompt": lambda: stubs.gallery.Search(
            gallery_service_pb2.SearchRequest(gallery="fields", probes=[bad])
        ),
        "probe.prompt": lambda: stubs.gallery.Verify(
            gallery_service_pb2.VerifyRequest(gallery="fields", subject="s", probe=bad)
        ),
    }
    for field, call in calls.items():
        with Refused(grpc.StatusCode.INVALID_ARGUMENT) as refused:
            call()
        assert wire.field(refused.status) == field


# ---- the client ------------------------------------------------------------------------------


def test_the_client_embeds_texts_with_prompts_and_says_what_was_cut(client: Client) -> None:
    long = " ".join(twins.WORDS[:30])
    made = client.embed(
        ["word1", Text("word1", "passage"), Text(long, "")], "texts", prompt="query"
    )
    expected = [
        twins.embed_texts(["word1"], twins.PROMPTS["query"]),
        twins.embed_texts(["word1"], twins.PROMPTS["passage"]),
        twins.embed_texts([long]),
    ]
    np.testing.assert_allclose(made.vectors, np.concatenate(expected), atol=1e-5)
    assert made.token_counts == (7, 6, 32)
    assert made.truncated == (False, False, True)
    with pytest.raises(LimitExceeded, match="32 tokens"):
        client.embed([long], "texts", truncate=False)


def test_the_client_compares_a_question_with_an_answer_each_with_its_prompt(
    client: Client,
) -> None:
    pair = (Text("word1 word2", "query"), Text("word2 word3", "passage"))
    (result,) = client.compare([pair], model="texts").checked()
    query = twins.embed_texts([pair[0].text], twins.PROMPTS["query"])
    passage = twins.embed_texts([pair[1].text], twins.PROMPTS["passage"])
    assert result.distance == pytest.approx(paired(query, passage, Metric.COSINE)[0], abs=1e-5)
    assert result.match is not None
    assert 0 < result.probability < 1  # type: ignore[operator]


def test_the_client_enrolls_searches_and_verifies_texts(client: Client) -> None:
    texts, labels = twins.classes_of_texts(12, 3)
    client.create_gallery("questions", model="texts")
    items = [
        EnrollItem(words, subject=f"topic{label}")
        for words, label in zip(texts, labels, strict=True)
        if words != texts[0]
    ]
    client.enroll("questions", items, prompt="passage", raise_for_errors=True)
    (hits,) = client.search("questions", [texts[0]], prompt="passage").checked()
    assert hits[0].subject == "topic0"
    verification = client.verify("questions", "topic0", texts[0], prompt="passage")
    assert verification.distance == pytest.approx(hits[0].distance, abs=1e-6)
    without = client.verify("questions", "topic0", texts[0], prompt="")
    assert without.distance > verification.distance


def test_the_client_refuses_a_prompt_for_a_picture_and_broken_unicode(client: Client) -> None:
    for inputs in ([b"picture"], [np.zeros(3, np.float32)]):
        with pytest.raises(InvalidInput, match="only texts take one"):
            client.embed(inputs, "small", prompt="query")
    with pytest.raises(InvalidInput, match="surrogate"):
        client.embed(["\ud800"], "texts")


def test_the_client_reads_a_text_models_description(client: Client, text_file: Path) -> None:
    model = client.model("texts")
    assert (model.modality, model.truncations, model.precision) == ("text", (8,), "fp32")
    assert model.manifest() == manifest.read(text_file)
    assert len(model.operating_points) > 5
