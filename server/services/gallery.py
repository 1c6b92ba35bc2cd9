"""GalleryService over the galleries, with the engines to embed what comes in raw."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np

from twinserve import decision, distance
from twinserve.errors import (
    EmptyInput,
    InvalidInput,
    LimitExceeded,
    SpaceMismatch,
    TwinserveError,
)
from twinserve.manifest import Calibration
from twinserve.server import inputs, paging
from twinserve.server.admission import Admission
from twinserve.server.callers import Caller
from twinserve.server.config import Limits
from twinserve.server.engine import Embedded
from twinserve.server.gallery import GallerySettings, Hits, NewItem, SearchOutcome
from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gallery.gallery import Gallery
from twinserve.server.gate import Gate
from twinserve.server.inputs import Ready, Vector
from twinserve.server.metrics import Metrics
from twinserve.server.models import Models
from twinserve.server.services import codec, gallery_codec
from twinserve.server.services.calls import (
    Context,
    caller_of,
    check_items,
    count_errors,
    not_built,
    unary,
)
from twinserve.server.services.embedding_inputs import embed_messages
from twinserve.server.services.status import status_of
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2 as shared

Result = TypeVar("Result")

DEFAULT_TOP_K = 10
MAX_EF = 4096
PATIENCE = 10.0  # seconds that a read without a deadline waits for its at_least
_CHANGES = {
    "created": pb.CHANGE_CREATED,
    "replaced": pb.CHANGE_REPLACED,
    "unchanged": pb.CHANGE_UNCHANGED,
}


class GalleryService(rpc.GalleryServiceServicer):
    """Keeps and searches galleries; see the contract for what each call promises.

    Reads run in `readers`, writes in the gallery's own writer; the event loop only moves things.
    """

    def __init__(
        self,
        galleries: Galleries,
        models: Models,
        metrics: Metrics,
        gate: Gate,
        limits: Limits,
        admission: Admission,
        readers: Executor,
    ) -> None:
        self.galleries = galleries
        self.models = models
        self.metrics = metrics
        self.gate = gate
        self.limits = limits
        self._admission = admission
        self._readers = readers

    @unary
    async def CreateGallery(
        self, request: pb.CreateGalleryRequest, context: Context
    ) -> pb.CreateGalleryResponse:
        asked = request.gallery
        if not asked.name:
            raise EmptyInput(
                "gallery.name is empty; give a name of [a-z0-9][a-z0-9._-]{0,62}",
                field="gallery.name",
            )
        engine = self.models.resolve(asked.model, "gallery.model")
        if asked.max_items < 0:
            raise InvalidInput(
                f"max_items is {asked.max_items}; give at least 1, or 0 for the server's limit",
                field="gallery.max_items",
            )
        dimension = asked.dimension or engine.manifest.dimension
        settings = GallerySettings(
            name=asked.name,
            model=engine.name,
            space_id=engine.space_of(dimension, "gallery.dimension"),
            dimension=dimension,
            metric=codec.metric_of(asked.metric) or engine.manifest.metric,
            hnsw=gallery_codec.hnsw_settings(asked.hnsw),
            metadata_keys=gallery_codec.metadata_keys(list(asked.metadata_keys)),
            max_items=asked.max_items,
        )
        status = await self._read(lambda: self.galleries.create(settings, request.request_id))
        return pb.CreateGalleryResponse(gallery=gallery_codec.gallery_message(status))

    @unary
    async def GetGallery(
        self, request: pb.GetGalleryRequest, context: Context
    ) -> pb.GetGalleryResponse:
        name = codec.required(request.name, "name")
        status = await self._read(lambda: self.galleries.get(name).status())
        return pb.GetGalleryResponse(gallery=gallery_codec.gallery_message(status))

    @unary
    async def ListGalleries(
        self, request: pb.ListGalleriesRequest, context: Context
    ) -> pb.ListGalleriesResponse:
        size = paging.size(request.page_size, 100, 1000)
        after = paging.decode(request.page_token, b"galleries")
        found = await self._read(lambda: self.galleries.list(after, size + 1))
        response = pb.ListGalleriesResponse(
            galleries=[gallery_codec.gallery_message(status) for status in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = paging.encode(b"galleries", found[size - 1].settings.name)
        return response

    @unary
    async def DeleteGallery(
        self, request: pb.DeleteGalleryRequest, context: Context
    ) -> pb.DeleteGalleryResponse:
        name = codec.required(request.name, "name")
        await self._read(lambda: self.galleries.delete(name))
        return pb.DeleteGalleryResponse()

    @unary
    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> pb.EnrollResponse:
        codec.check_count(len(request.items), "items", self.limits)
        gallery = self.galleries.get(codec.required(request.gallery, "gallery"))
        places = [i for i, item in enumerate(request.items) if item.HasField("input")]
        messages = [(f"items[{i}].input", request.items[i].input) for i in places]
        embedded = await self._embed(gallery, messages, caller_of(context))
        errors = {places[i]: error for i, error in embedded.errors.items()}
        check_items(errors, len(request.items), atomic=request.atomic)
        vectors = dict(zip(places, embedded.outcomes, strict=True))
        items: dict[int, NewItem] = {}
        for i, asked in enumerate(request.items):
            vector = vectors.get(i)
            if isinstance(vector, TwinserveError):
                continue
            try:
                items[i] = NewItem(
                    id=asked.item.id,
                    subject=asked.item.subject,
                    metadata=gallery_codec.metadata(asked.item.metadata, f"items[{i}].item"),
                    embedding=vector,
                    digest=self._content_digest(gallery, asked),
                )
            except TwinserveError as error:
                errors[i] = error
        check_items(errors, len(request.items), atomic=request.atomic)
        began = time.perf_counter()
        # Checking and digesting a thousand items takes a while, so not on the loop.
        writing = await self._read(
            lambda: gallery.enroll(
                list(items.values()),
                atomic=request.atomic,
                request_id=request.request_id,
                request_digest=_body_digest(request),
            )
        )
        outcome = await asyncio.wrap_future(writing)
        seconds = time.perf_counter() - began
        self.metrics.search.labels("Enroll").observe(seconds)
        response = pb.EnrollResponse(
            consistency_token=outcome.token,
            timing=codec.timing_message(embedded.ride, embedded.preprocess, seconds),
        )
        results = dict(zip(items, outcome.results, strict=True))
        for i, result in results.items():
            if isinstance(result, TwinserveError):
                # The gallery counts the items that it was given, the caller those that were sent.
                part = result.field.partition("].")[2] or "item"
                errors[i] = result.at(f"items[{i}].{part}")
        check_items(errors, len(request.items), atomic=request.atomic)
        count_errors(self.metrics, errors)
        for i in range(len(request.items)):
            answer = response.results.add()
            if i in errors:
                answer.error.CopyFrom(status_of(errors[i]))
                continue
            enrolled = results[i]
            assert not isinstance(enrolled, TwinserveError)
            answer.enrolled.id = enrolled.id
            answer.enrolled.change = _CHANGES[enrolled.change.value]
        return response

    async def EnrollStream(
        self, request_iterator: AsyncIterator[pb.EnrollRequest], context: Context
    ) -> AsyncIterator[pb.EnrollResponse]:
        await not_built(context, "EnrollStream", "send calls of Enroll with many items each")
        return
        yield  # makes this the asynchronous generator that grpc expects

    @unary
    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveResponse:
        gallery = self.galleries.get(codec.required(request.gallery, "gallery"))
        target = request.WhichOneof("target")
        digest = _body_digest(request)
        if target == "ids":
            codec.check_count(len(request.ids.ids), "ids.ids", self.limits)
            removing = gallery.remove(
                ids=list(request.ids.ids), request_id=request.request_id, request_digest=digest
            )
        elif target == "subject":
            if not request.subject:
                raise EmptyInput("subject is empty; name the subject to remove", field="subject")
            removing = gallery.remove(
                subject=request.subject, request_id=request.request_id, request_digest=digest
            )
        elif target == "filter":
            chosen = gallery_codec.filter_of(request.filter)
            removing = gallery.remove(
                filter=chosen, request_id=request.request_id, request_digest=digest
            )
        else:
            raise EmptyInput(
                "nothing is named to remove; set ids, subject or filter", field="target"
            )
        removal = await asyncio.wrap_future(removing)
        return pb.RemoveResponse(removed=removal.removed, consistency_token=removal.token)

    @unary
    async def GetItem(self, request: pb.GetItemRequest, context: Context) -> pb.GetItemResponse:
        gallery = self.galleries.get(codec.required(request.gallery, "gallery"))
        codec.required(request.id, "id")
        await self._wait_for(gallery, request.at_least, context)
        item, vector = await self._read(lambda: gallery.get_item(request.id))
        response = pb.GetItemResponse(item=gallery_codec.item_message(item))
        if request.with_embedding and vector is not None:
            codec.write_embedding(response.embedding, vector, gallery.settings.space_id)
        return response

    @unary
    async def ListItems(
        self, request: pb.ListItemsRequest, context: Context
    ) -> pb.ListItemsResponse:
        gallery = self.galleries.get(codec.required(request.gallery, "gallery"))
        size = paging.size(request.page_size, 100, 10_000)
        codec.check_enum(request.view, pb.ItemView.values(), "view")
        binding = b"items\0" + request.gallery.encode() + b"\0"
        chosen = None
        if request.HasField("filter"):
            binding += request.filter.SerializeToString(deterministic=True)
            chosen = gallery_codec.filter_of(request.filter)
        after = paging.decode(request.page_token, binding)
        await self._wait_for(gallery, request.at_least, context)
        found, token = await self._read(
            lambda: gallery.list_items(after=after, limit=size + 1, filter=chosen)
        )
        full = request.view == pb.ITEM_VIEW_FULL
        response = pb.ListItemsResponse(
            items=[
                gallery_codec.item_message(item)
                if full
                else shared.Item(id=item.id, subject=item.subject)
                for item in found[:size]
            ],
            consistency_token=token,
        )
        if len(found) > size:
            response.next_page_token = paging.encode(binding, found[size - 1].id)
        return response

    @unary
    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        codec.check_count(len(request.probes), "probes", self.limits)
        gallery = self.galleries.get(codec.required(request.gallery, "gallery"))
        rule = codec.rule_of(request.rule)
        decision.check_rule(rule, search=True)
        codec.check_enum(request.view, pb.ItemView.values(), "view")
        codec.check_enum(request.group_by, pb.GroupBy.values(), "group_by")
        k, ef, max_distance = _search_settings(request, self.limits)
        chosen = gallery_codec.filter_of(request.filter) if request.HasField("filter") else None
        await self._wait_for(gallery, request.at_least, context)
        embedded = await self._embed(
            gallery,
            [(f"probes[{i}]", probe) for i, probe in enumerate(request.probes)],
            caller_of(context),
        )
        errors = embedded.errors
        check_items(errors, len(request.probes))
        count_errors(self.metrics, errors)
        places = [i for i in range(len(request.probes)) if i not in errors]
        probes = np.stack([o for o in embedded.outcomes if not isinstance(o, TwinserveError)])
        settings = gallery.settings
        calibrations = self._calibrations(settings)
        calibration = decision.nearest_of(calibrations, settings.metric, 1).calibration

        def search() -> tuple[SearchOutcome, decision.SearchLimit]:
            found = gallery.search(
                probes,
                k=k,
                filter=chosen,
                max_distance=max_distance,
                by_subject=request.group_by != pb.GROUP_BY_ITEM,
                exact=request.exact,
                ef=ef,
            )
            # Also in the thread: the first to ask for a rate has the gallery's evidence evaluated.
            return found, decision.search_limit(
                rule, calibration, found.items, found.subjects, found.strangers
            )

        began = time.perf_counter()
        with self._admission.admit(len(probes)):
            outcome, limit = await self._read(search)
        seconds = time.perf_counter() - began
        self.metrics.search.labels("Search").observe(seconds)
        response = pb.SearchResponse(
            consistency_token=outcome.token,
            model_version=self._version_that_ran(gallery, embedded),
            timing=codec.timing_message(embedded.ride, embedded.preprocess, seconds),
        )
        self.metrics.search_decisions.labels(limit.evidence.value).inc(len(probes))
        found = dict(zip(places, outcome.results, strict=True))
        sizes = {hit.items for hits in outcome.results for hit in hits.hits}
        judges = {
            size: decision.nearest_of(calibrations, settings.metric, size).likelihood
            for size in sizes
        }
        details = {}
        if request.view == pb.ITEM_VIEW_FULL:
            wanted = [hit.item_id for hits in outcome.results for hit in hits.hits]
            details = {item.id: item for item in await self._read(lambda: gallery.items(wanted))}
        for i in range(len(request.probes)):
            result = response.results.add()
            if i in errors:
                result.error.CopyFrom(status_of(errors[i]))
                continue
            _write_hits(result.hits, found[i], limit, judges)
            for hit in result.hits.hits:
                if hit.item.id in details:
                    hit.item.CopyFrom(gallery_codec.item_message(details[hit.item.id]))
        return response

    @unary
    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        gallery = self.galleries.get(codec.required(request.gallery, "gallery"))
        if not request.subject:
            raise EmptyInput("subject is empty; name who the probe should be", field="subject")
        rule = codec.rule_of(request.rule)
        decision.check_rule(rule, search=False)
        prior = decision.check_prior(request.prior if request.HasField("prior") else None)
        await self._wait_for(gallery, request.at_least, context)
        embedded = await self._embed(gallery, [("probe", request.probe)], caller_of(context))
        probe = embedded.outcomes[0]
        if isinstance(probe, TwinserveError):
            raise probe
        began = time.perf_counter()
        with self._admission.admit(1):
            nearest = await self._read(lambda: gallery.verify(request.subject, probe))
        seconds = time.perf_counter() - began
        self.metrics.search.labels("Verify").observe(seconds)
        settings = gallery.settings
        self.metrics.distances.labels(settings.model).observe(nearest.distance)
        judged = decision.nearest_of(
            self._calibrations(settings), settings.metric, nearest.items_compared
        )
        limit = decision.limit(rule, judged.calibration, judged.compared)
        return pb.VerifyResponse(
            score=codec.score_message(
                nearest.distance, decision.likelihood(nearest.distance, judged.likelihood, prior)
            ),
            decision=codec.decision_message(limit, limit.outcome(nearest.distance)),
            item_id=nearest.item_id,
            items_compared=nearest.items_compared,
            consistency_token=nearest.token,
            model_version=self._version_that_ran(gallery, embedded),
            timing=codec.timing_message(embedded.ride, embedded.preprocess, seconds),
        )

    async def _embed(
        self, gallery: Gallery, messages: Sequence[tuple[str, shared.Input]], caller: Caller
    ) -> Embedded:
        """Embed inputs into the gallery's space; no model is needed when all are ready vectors."""
        settings = gallery.settings
        if all(message.WhichOneof("kind") == "embedding" for _, message in messages):
            read = [codec.raw_input(message, field, self.limits) for field, message in messages]
            embedded = Embedded(tuple(_checked(raw, settings) for raw in read), "", 0.0, None)
        else:
            engine = self.models.of_space(settings.model, settings.space_id)
            embedded = await embed_messages(
                engine, messages, caller, self.limits, settings.dimension
            )
            self.metrics.preprocess.labels(engine.name).observe(embedded.preprocess)
        outcomes: list[Vector | TwinserveError] = []
        for (field, message), outcome in zip(messages, embedded.outcomes, strict=True):
            try:
                if not isinstance(outcome, TwinserveError):
                    # The gallery's metric may be stricter than the model's: cosine and zero.
                    distance.check_vectors(outcome, settings.metric)
            except TwinserveError as error:
                outcome = error
            if isinstance(outcome, TwinserveError) and not outcome.field:
                outcome = outcome.at(f"{field}.{message.WhichOneof('kind')}")
            outcomes.append(outcome)
        return Embedded(tuple(outcomes), embedded.space_id, embedded.preprocess, embedded.ride)

    def _calibrations(self, settings: GallerySettings) -> list[Calibration]:
        """Return what is known of the gallery's distances; nothing when no model serves it."""
        try:
            manifest = self.models.of_space(settings.model, settings.space_id).manifest
        except SpaceMismatch:
            return []
        return [
            calibration
            for calibration in manifest.calibrations
            if calibration.precision == manifest.precision
            and calibration.dimension == settings.dimension
        ]

    def _version_that_ran(self, gallery: Gallery, embedded: Embedded) -> str:
        if embedded.ride is None:
            return ""
        settings = gallery.settings
        return self.models.of_space(settings.model, settings.space_id).version

    def _content_digest(self, gallery: Gallery, asked: pb.EnrollItem) -> bytes:
        """Say what makes an enrolled content the same: the input and the space."""
        if not asked.HasField("input") or asked.input.WhichOneof("kind") == "embedding":
            return b""  # the gallery takes the vector's own
        raw = codec.raw_input(asked.input, "input", self.limits)
        assert not isinstance(raw, TwinserveError)
        settings = gallery.settings
        contract = self.models.of_space(settings.model, settings.space_id).manifest.input
        digest = inputs.digest(raw, contract)
        return hashlib.sha256(digest + settings.space_id.encode()).digest()

    async def _read(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, call)

    async def _wait_for(self, gallery: Gallery, token: str, context: Context) -> None:
        if token:
            remaining = context.time_remaining()
            patience = PATIENCE if remaining is None else remaining
            await self._read(lambda: gallery.wait_for(token, patience))


def _checked(
    raw: inputs.RawInput | TwinserveError, settings: GallerySettings
) -> Vector | TwinserveError:
    if isinstance(raw, TwinserveError):
        return raw
    assert isinstance(raw, Ready)
    try:
        return inputs.check_ready(raw, settings.dimension, settings.space_id, settings.metric)
    except TwinserveError as error:
        return error


def _body_digest(request: pb.EnrollRequest | pb.RemoveRequest) -> bytes:
    """Digest a request without its id, to tell a retry from another request under the same id."""
    if not request.request_id:
        return b""
    body = copy.deepcopy(request)
    body.ClearField("request_id")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def _search_settings(
    request: pb.SearchRequest, limits: Limits
) -> tuple[int, int | None, float | None]:
    """Return (k, ef, max_distance).

    Raises:
        InvalidInput, LimitExceeded: outside its range.
    """
    if not 0 <= request.top_k <= limits.max_top_k:
        raise LimitExceeded(
            f"top_k is {request.top_k}; give 1 to {limits.max_top_k}, or 0 for {DEFAULT_TOP_K}",
            field="top_k",
            metadata={"limit": str(limits.max_top_k), "value": str(request.top_k)},
        )
    k = request.top_k or DEFAULT_TOP_K
    if len(request.probes) * k > limits.max_hits:
        raise LimitExceeded(
            f"{len(request.probes)} probes with top_k {k} ask for {len(request.probes) * k} hits, "
            f"the limit is {limits.max_hits} a call; send fewer probes, or a smaller top_k",
            field="top_k",
            metadata={"limit": str(limits.max_hits), "value": str(len(request.probes) * k)},
        )
    ef = request.ef if request.HasField("ef") else None
    if ef is not None and not 1 <= ef <= MAX_EF:
        raise LimitExceeded(f"ef is {ef}; give 1 to {MAX_EF}", field="ef")
    max_distance = request.max_distance if request.HasField("max_distance") else None
    if max_distance is not None and not max_distance >= 0:
        raise InvalidInput(f"max_distance is {max_distance}; give at least 0", field="max_distance")
    return k, ef, max_distance


def _write_hits(
    message: pb.Hits,
    hits: Hits,
    limit: decision.SearchLimit,
    judges: Mapping[int, Calibration | None],
) -> None:
    gallery_codec.write_limit(message, limit)
    message.exact = hits.exact
    matched = False
    for hit in hits.hits:
        written = message.hits.add()
        written.item.id = hit.item_id
        written.item.subject = hit.subject
        likelihood = decision.likelihood(hit.distance, judges[hit.items], 0.5)
        written.score.CopyFrom(codec.score_message(hit.distance, likelihood))
        written.match = limit.outcome(hit.distance) is decision.Outcome.MATCH
        matched = matched or written.match
    if limit.threshold is None:
        message.outcome = shared.OUTCOME_NOT_CALIBRATED
    else:
        message.outcome = shared.OUTCOME_MATCH if matched else shared.OUTCOME_NO_MATCH
