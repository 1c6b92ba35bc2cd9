"""Design's table of errors, each provoked on a real server: code, reason and details."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from tests.server.wire import Refused, Stubs
from twinserve import manifest
from twinserve.v1 import (
    embedding_service_pb2 as embedding_pb,
)
from twinserve.v1 import (
    gallery_pb2,
    gallery_service_pb2,
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


@pytest.fixture(scope="module")
def space(twin_file: Path) -> str:
    return manifest.read(twin_file).space_id


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


PIXELS, _ = twins.classes_of_pixels(1, 1)
WHOLE = wire.png(PIXELS[0])
TENSOR = shared_pb2.Tensor
BAD_INPUTS: dict[str, tuple[shared_pb2.Input, str]] = {
    "an undecodable image": (shared_pb2.Input(image=b"GIF89a but no picture"), "IMAGE_UNDECODABLE"),
    "a truncated image": (shared_pb2.Input(image=WHOLE[: len(WHOLE) // 2]), "IMAGE_UNDECODABLE"),
    "an empty image": (shared_pb2.Input(image=b""), "EMPTY_INPUT"),
    "a decompression bomb": (shared_pb2.Input(image=bomb()), "LIMIT_EXCEEDED"),
    "an image of too many bytes": (
        shared_pb2.Input(image=WHOLE + b"\0" * (17 << 20)),
        "LIMIT_EXCEEDED",
    ),
    "no input": (shared_pb2.Input(), "EMPTY_INPUT"),
    "a text for an image model": (shared_pb2.Input(text="who is this"), "WRONG_MODALITY"),
    "an empty text": (shared_pb2.Input(text=""), "EMPTY_INPUT"),
    "pixels of another size": (wire.tensor(np.zeros((27, 28, 1), np.uint8)), "WRONG_SHAPE"),
    "pixels of another type": (wire.tensor(np.zeros((28, 28, 1), np.float32)), "WRONG_SHAPE"),
    "a tensor without a type": (
        shared_pb2.Input(tensor=TENSOR(shape=[1], data=b"a")),
        "WRONG_SHAPE",
    ),
    "a tensor shorter than its shape": (
        shared_pb2.Input(tensor=TENSOR(data_type=1, shape=[28, 28, 1], data=b"abc")),
        "WRONG_SHAPE",
    ),
    "a tensor of a huge shape": (
        shared_pb2.Input(tensor=TENSOR(data_type=1, shape=[2**62, 2**62, 4], data=b"abc")),
        "WRONG_SHAPE",
    ),
    "a tensor with a negative extent": (
        shared_pb2.Input(tensor=TENSOR(data_type=1, shape=[-1, 28], data=b"abc")),
        "WRONG_SHAPE",
    ),
    "an embedding without values": (
        shared_pb2.Input(embedding=shared_pb2.Embedding()),
        "EMPTY_INPUT",
    ),
}  # fmt: skip


def bad_embeddings(space: str) -> dict[str, tuple[shared_pb2.Input, str]]:
    """Ready vectors that are wrong in the right space."""
    nan, infinite = np.ones(16, np.float32), np.ones(16, np.float32)
    nan[3], infinite[5] = np.nan, np.inf
    return {
        "NaN": (wire.ready(nan, space), "NOT_FINITE"),
        "infinity": (wire.ready(infinite, space), "NOT_FINITE"),
        "another dimension": (wire.ready(np.ones(15), space), "WRONG_SHAPE"),
    }


def through_embed(stubs: Stubs, bad: shared_pb2.Input) -> str:
    stubs.embedding.Embed(embedding_pb.EmbedRequest(inputs=[bad]))
    return "inputs[0]"


def through_compare(stubs: Stubs, bad: shared_pb2.Input) -> str:
    pair = embedding_pb.Pair(first=wire.image(PIXELS[0]), second=bad)
    stubs.embedding.Compare(embedding_pb.CompareRequest(pairs=[pair]))
    return "pairs[0].second"


def through_enroll(stubs: Stubs, bad: shared_pb2.Input) -> str:
    stubs.gallery.Enroll(pb.EnrollRequest(gallery="cosine", items=[pb.EnrollItem(input=bad)]))
    return "items[0].input"


def through_search(stubs: Stubs, bad: shared_pb2.Input) -> str:
    stubs.gallery.Search(pb.SearchRequest(gallery="cosine", probes=[bad]))
    return "probes[0]"


def through_verify(stubs: Stubs, bad: shared_pb2.Input) -> str:
    stubs.gallery.Verify(pb.VerifyRequest(gallery="cosine", subject="ann", probe=bad))
    return "probe"


CALLS: dict[str, tuple[Callable[[Stubs, shared_pb2.Input], str], str]] = {
    "Embed": (through_embed, "inputs[0]"),
    "Compare": (through_compare, "pairs[0].second"),
    "Enroll": (through_enroll, "items[0].input"),
    "Search": (through_search, "probes[0]"),
    "Verify": (through_verify, "probe"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", BAD_INPUTS)
def test_a_bad_input_is_refused_by_every_call_that_takes_one(
    stubs: Stubs, call: str, what: str
) -> None:
    send, field = CALLS[call]
    bad, reason = BAD_INPUTS[what]
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        send(stubs, bad)
    assert wire.reason(refused.status) == reason
    assert wire.field(refused.status).startswith(field)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", ["NaN", "infinity", "another dimension"])
def test_a_bad_embedding_is_refused_by_every_call(
    stubs: Stubs, space: str, call: str, what: str
) -> None:
    send, field = CALLS[call]
    bad, reason = bad_embeddings(space)[what]
    with Refused(CODE.INVALID_ARGUMENT) as refused:
        send(stubs, bad)
    assert wire.reason(refused.status) == reason
    assert wire.field(refused.status) == f"{field}.embedding"


@pytest.mark.parametrize("call", CALLS)
def test_an_embedding_of_another_space_is_refused_with_both_ids(
    stubs: Stubs, space: str, call: str
) -> None:
    for foreign in ("sp_foreign", ""):
        with Refused(CODE.FAILED_PRECONDITION) as refused:
            CALLS[call][0](stubs, wire.ready(np.ones(16), foreign))
        assert wire.reason(refused.status) == "SPACE_MISMATCH"
        assert space in refused.status.message


@pytest.mark.parametrize("call", ["Enroll", "Search", "Verify"])
def test_a_zero_vector_is_refused_under_cosine(stubs: Stubs, space: str, call: str) -> None:
    zero = np.zeros(16, np.float32)
    black = wire.tensor(np.zeros((28, 28, 1), np.uint8))  # which this twin maps to zero
    for bad in (wire.ready(zero, space), black):
        with Refused(CODE.INVALID_ARGUMENT) as refused:
            CALLS[call][0](stubs, bad)
        assert wire.reason(refused.status) == "ZERO_VECTOR"
        assert wire.field(refused.status).startswith(CALLS[call][1])


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
            lambda: stubs.gallery.Search(pb.SearchRequest(gallery="cosine", probes=[good], ef=0)),
            "LIMIT_EXCEEDED",
            "ef",
        ),
        (lambda: stubs.gallery.Remove(pb.RemoveRequest(gallery="cosine")), "EMPTY_INPUT", ""),
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


def test_calls_of_later_releases_answer_unimplemented_with_a_sentence(stubs: Stubs) -> None:
    calls: list[Callable[[], object]] = [
        lambda: stubs.model.LoadModel(model_service_pb2.LoadModelRequest(file="a.onnx")),
        lambda: stubs.model.UnloadModel(model_service_pb2.UnloadModelRequest(name="small")),
        lambda: list(stubs.embedding.EmbedStream(iter([embedding_pb.EmbedStreamRequest()]))),
        lambda: list(stubs.gallery.EnrollStream(iter([gallery_service_pb2.EnrollRequest()]))),
    ]
    for call in calls:
        with Refused(CODE.UNIMPLEMENTED) as refused:
            call()
        assert "is not built yet; " in refused.status.message


def test_a_deadline_that_has_passed_is_answered_so(stubs: Stubs) -> None:
    request = embedding_pb.EmbedRequest(inputs=[wire.tensor(PIXELS[0])] * 1000)
    with pytest.raises(grpc.RpcError) as late:
        stubs.embedding.Embed(request, timeout=1e-4)
    assert late.value.code() is CODE.DEADLINE_EXCEEDED


def test_a_full_server_refuses_with_a_retry_delay_and_then_serves_again(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> None:
    full = start_server("--model", twin_file, "--data-dir", tmp_path, "--max-rows", "2048")
    pixels, _ = twins.classes_of_pixels(1, 1)
    request = embedding_pb.EmbedRequest(inputs=[wire.image(PIXELS[0]), wire.image(pixels[0])])
    # Trailing bytes make the thousand different without changing the picture.
    picture = wire.png(pixels[0])
    large = embedding_pb.EmbedRequest(
        inputs=[shared_pb2.Input(image=picture + bytes(divmod(i, 256))) for i in range(1000)]
    )
    with full.channel() as channel:
        stub = Stubs(channel).embedding
        running = [stub.Embed.future(large) for _ in range(6)]
        codes = []
        for call in running:
            try:
                call.result()
                codes.append(CODE.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
                status = rpc_status.from_call(error)
                assert status is not None
                assert wire.reason(status) == "QUEUE_FULL"
                delay = wire.detail(status, details.RetryInfo).retry_delay
                assert 0 < delay.ToMilliseconds() <= 30_000
        assert set(codes) == {CODE.OK, CODE.RESOURCE_EXHAUSTED}
        assert len(stub.Embed(request).results) == 2, "afterwards it serves as before"
