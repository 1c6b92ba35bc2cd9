"""GalleryService over the galleries, with the engines to embed what comes in raw."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
from twinserve.server.afterwards import Afterwards
from twinserve.server.batching.admission import Admission
from twinserve.server.batching.jobs import Ride
from twinserve.server.callers import Caller
from twinserve.server.completion import Completion, in_executor
from twinserve.server.config import Limits
from twinserve.server.engine import Embedded, Engine
from twinserve.server.front import Call, driven
from twinserve.server.gallery import EnrollOutcome, GallerySettings, GalleryStatus, NewItem
from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gallery.gallery import Gallery
from twinserve.server.gate import Gate
from twinserve.server.inputs import Ready, Vector
from twinserve.server.models.holding import Models
from twinserve.server.runtime import machine
from twinserve.server.security.access import Access
from twinserve.server.services import (
    codec,
    enroll_packed,
    enroll_reply,
    enroll_stream,
    gallery_codec,
    searching,
)
from twinserve.server.services.calls import (
    Context,
    Encoded,
    abort,
    access_of,
    caller_of,
    check_items,
    count_errors,
    leave_front,
    unary,
)
from twinserve.server.services.embedding_inputs import Reading, embed_readings, read_messages
from twinserve.server.services.gallery_copy import Backups, export_items, streaming
from twinserve.server.services.gathering import Gathering
from twinserve.server.services.status import status_of
from twinserve.server.watching.metrics import Metrics
from twinserve.v1 import gallery_pb2
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1 import gallery_service_pb2_grpc as rpc
from twinserve.v1 import shared_pb2 as shared

Result = TypeVar("Result")

DEFAULT_TOP_K = 10
MAX_EF = 4096
MAX_MEAN_OF = 100
FEW_INPUTS = 8  # of a call that are read in place; more are read in a thread
PATIENCE = 10.0  # seconds that a read without a deadline waits for its at_least
_VIEWS, _GROUPS = pb.ItemView.values(), pb.GroupBy.values()


class GalleryService(rpc.GalleryServiceServicer):
    """Keeps and searches galleries; see the contract for what each call promises.

    Reads run in `readers`, writes in the gallery's own writer, and galleries are made and deleted
    in a thread of their own, since that waits for the disk; the event loop only moves things.
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
        backup_dir: Path | None = None,
        afterwards: Afterwards | None = None,
    ) -> None:
        self.galleries = galleries
        self.models = models
        self.metrics = metrics
        self.gate = gate
        self.limits = limits
        self._admission = admission
        self._readers = readers
        self._searches: Gathering[searching.Ask, searching.Reply] = Gathering(
            readers, machine.processors().usable, searching.MOST_TOGETHER, afterwards
        )
        self._changer = ThreadPoolExecutor(1, thread_name_prefix="galleries")
        self._backups = Backups(galleries, backup_dir, gate)

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
        access = access_of(context)
        self._check_reach(asked.name, access, "gallery.name")
        if asked.max_items < 0:
            raise InvalidInput(
                f"max_items is {asked.max_items}; give at least 1, or 0 for the server's limit",
                field="gallery.max_items",
            )
        if asked.max_bytes < 0:
            raise InvalidInput(
                f"max_bytes is {asked.max_bytes}; give 1 MiB at least, or 0 for no limit",
                field="gallery.max_bytes",
            )
        with self.models.using(asked.model, "gallery.model") as engine:
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
                max_bytes=asked.max_bytes,
            )
            # Held until the gallery is there: no unload may come between.
            status = await self._change(lambda: self.galleries.create(settings, request.request_id))
        return pb.CreateGalleryResponse(gallery=_gallery_message(status, access))

    @unary
    async def GetGallery(
        self, request: pb.GetGalleryRequest, context: Context
    ) -> pb.GetGalleryResponse:
        name = codec.required(request.name, "name")
        access = access_of(context)
        gallery = self._gallery(name, access, "name")
        status = await self._read(lambda: self.galleries.status(gallery.settings.name))
        return pb.GetGalleryResponse(gallery=_gallery_message(status, access))

    @unary
    async def ListGalleries(
        self, request: pb.ListGalleriesRequest, context: Context
    ) -> pb.ListGalleriesResponse:
        size = paging.size(request.page_size, 100, 1000)
        after = paging.decode(request.page_token, b"galleries")
        access = access_of(context)
        found = await self._read(lambda: self.galleries.list(after, size + 1, access.reaches))
        response = pb.ListGalleriesResponse(
            galleries=[_gallery_message(status, access) for status in found[:size]]
        )
        if len(found) > size:
            response.next_page_token = paging.encode(b"galleries", found[size - 1].settings.name)
        return response

    @unary
    async def DeleteGallery(
        self, request: pb.DeleteGalleryRequest, context: Context
    ) -> pb.DeleteGalleryResponse:
        name = codec.required(request.name, "name")
        self._check_reach(name, access_of(context), "name")
        await self._change(lambda: self.galleries.delete(name))
        return pb.DeleteGalleryResponse()

    @unary
    async def SetGalleryAlias(
        self, request: pb.SetGalleryAliasRequest, context: Context
    ) -> pb.SetGalleryAliasResponse:
        alias = codec.required(request.alias, "alias")
        gallery = codec.required(request.gallery, "gallery")
        self._check_reach(alias, access_of(context), "alias")
        self._check_reach(gallery, access_of(context), "gallery")
        previous = await self._change(lambda: self.galleries.set_alias(alias, gallery))
        return pb.SetGalleryAliasResponse(previous=previous)

    @unary
    async def DeleteGalleryAlias(
        self, request: pb.DeleteGalleryAliasRequest, context: Context
    ) -> pb.DeleteGalleryAliasResponse:
        alias = codec.required(request.alias, "alias")
        self._check_reach(alias, access_of(context), "alias")
        await self._change(lambda: self.galleries.delete_alias(alias))
        return pb.DeleteGalleryAliasResponse()

    @unary
    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> Encoded:
        return await self._enroll(request, caller_of(context), access_of(context))

    @driven
    async def EnrollStream(  # type: ignore[override]
        self, request_iterator: object, context: Context
    ) -> None:
        # The front passes calls of its own, which drive themselves.
        assert isinstance(context, Call)
        try:
            caller = caller_of(context)
        except TwinserveError as error:
            await abort(context, status_of(error))
        access = access_of(context)
        await enroll_stream.serve(
            self,
            context,
            caller.deadline,
            lambda one, place: self._enroll(one, caller, access, place),
        )

    async def _enroll(
        self,
        request: pb.EnrollRequest,
        caller: Caller,
        access: Access,
        place: enroll_stream.Place | None = None,
    ) -> Encoded:
        """Answer one request.

        Args:
            request: the request.
            caller: whose it is.
            access: which galleries it reaches.
            place: in its stream, which waits for room and goes on where all items of a request
                failed; None for a call of its own, which is refused.
        """
        access.check_still_valid()
        codec.check_count(len(request.items), "items", self.limits)
        gallery = self._gallery(request.gallery, access)
        attempt = _once if place is None else place.attempt

        def check() -> None:
            if place is None or request.atomic:
                check_items(errors, len(request.items), atomic=request.atomic)

        packed: enroll_packed.Packed | None = None
        given: dict[int, tuple[Vector, bytes]] = {}
        if request.embeddings:
            packed = await self._read_many(
                len(request.items), lambda: enroll_packed.read(request, gallery.settings)
            )
            embedded = Embedded((), "", 0.0, None)
            errors = packed.errors
        else:
            places = [i for i, item in enumerate(request.items) if item.HasField("input")]
            messages = [(f"items[{i}].input", request.items[i].input) for i in places]
            with self._engine(gallery, messages) as engine:
                readings = await self._read_many(
                    len(messages), lambda: self._readings(engine, messages, digests=True)
                )
                embedded = await attempt(lambda: self._embed(gallery, engine, readings, caller))
            errors = {places[i]: error for i, error in embedded.errors.items()}
            given = {
                places[i]: (outcome, _content_digest(gallery, readings[i]))
                for i, outcome in enumerate(embedded.outcomes)
                if not isinstance(outcome, TwinserveError)
            }
        check()

        def gather() -> tuple[Sequence[int], Sequence[NewItem]]:
            """Return the places of the items that are sound so far, and these."""
            if packed is not None and not errors:
                with contextlib.suppress(TwinserveError):
                    return range(len(request.items)), packed.items()
            vectors = (
                given if packed is None else {i: (v, b"") for i, v in enumerate(packed.embeddings)}
            )
            items: dict[int, NewItem] = {}
            for i, asked in enumerate(request.items):
                if i in errors:
                    continue
                vector, digest = vectors.get(i, (None, b""))
                item = asked.item
                try:
                    metadata = gallery_codec.metadata(item.metadata, f"items[{i}].item")
                    items[i] = NewItem(item.id, item.subject, metadata, vector, digest)
                except TwinserveError as error:
                    errors[i] = error
            return list(items), list(items.values())

        sound, items = await self._read_many(len(request.items), gather)
        check()
        began = time.perf_counter()

        def submit() -> Future[EnrollOutcome]:
            return gallery.enroll(
                items,
                atomic=request.atomic,
                request_id=request.request_id,
                request_digest=_body_digest(request),
            )

        async with place or contextlib.nullcontext():
            # Checking and digesting a thousand items takes a while, so not on the loop.
            writing = await attempt(lambda: self._read(submit))
        outcome = await asyncio.wrap_future(writing)
        seconds = time.perf_counter() - began
        self.metrics.search.labels("Enroll", gallery.settings.model).observe(seconds)
        answers = dict(zip(sound, outcome.results, strict=True))
        for i, result in answers.items():
            if isinstance(result, TwinserveError):
                # The gallery counts the items that it was given, the caller those that were sent.
                part = result.field.partition("].")[2] or "item"
                errors[i] = result.at(f"items[{i}].{part}")
        check()
        count_errors(self.metrics, errors)
        results = [errors.get(i) or answers[i] for i in range(len(request.items))]
        timing = codec.timing_message(embedded.ride, embedded.preprocess, seconds)
        data = timing.SerializeToString()
        return Encoded(
            enroll_reply.response(results, outcome.token, data),
            "",
            failed=len(errors),
            timing_data=data,
        )

    @unary
    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveResponse:
        gallery = self._gallery(request.gallery, access_of(context))
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
    async def MoveItems(
        self, request: pb.MoveItemsRequest, context: Context
    ) -> pb.MoveItemsResponse:
        gallery = self._gallery(request.gallery, access_of(context))
        source = request.WhichOneof("source")
        ids, chosen = None, None
        if source == "ids":
            codec.check_count(len(request.ids.ids), "ids.ids", self.limits)
            ids = list(request.ids.ids)
        elif source == "filter":
            chosen = gallery_codec.filter_of(request.filter)
        else:
            raise EmptyInput("nothing is named to move; set ids or filter", field="source")
        moving = gallery.move(
            request.subject,
            ids=ids,
            filter=chosen,
            request_id=request.request_id,
            request_digest=_body_digest(request),
        )
        moved = await asyncio.wrap_future(moving)
        return pb.MoveItemsResponse(moved=moved.moved, consistency_token=moved.token)

    @unary
    async def RenameSubject(
        self, request: pb.RenameSubjectRequest, context: Context
    ) -> pb.RenameSubjectResponse:
        gallery = self._gallery(request.gallery, access_of(context))
        renaming = gallery.rename(
            codec.required(request.subject, "subject"),
            codec.required(request.new_subject, "new_subject"),
            merge=request.merge,
            request_id=request.request_id,
            request_digest=_body_digest(request),
        )
        moved = await asyncio.wrap_future(renaming)
        return pb.RenameSubjectResponse(moved=moved.moved, consistency_token=moved.token)

    @unary
    async def CountItems(
        self, request: pb.CountItemsRequest, context: Context
    ) -> pb.CountItemsResponse:
        gallery = self._gallery(request.gallery, access_of(context))
        chosen = gallery_codec.filter_of(request.filter) if request.HasField("filter") else None
        await self._wait_for(gallery, request.at_least, context)
        count = await self._read(lambda: gallery.count(filter=chosen, subject=request.subject))
        return pb.CountItemsResponse(
            item_count=count.items, subject_count=count.subjects, consistency_token=count.token
        )

    @streaming
    async def ExportItems(
        self, request: pb.ExportItemsRequest, context: Context
    ) -> AsyncIterator[pb.ExportItemsResponse]:
        gallery = self._gallery(request.gallery, access_of(context))
        await self._wait_for(gallery, request.at_least, context)
        async for message in export_items(gallery, request, self.gate, self._read):
            yield message

    @streaming
    async def BackupGalleries(
        self, request: pb.BackupGalleriesRequest, context: Context
    ) -> AsyncIterator[pb.BackupGalleriesResponse]:
        async for message in self._backups.make(request):
            yield message

    @unary
    async def GetItem(self, request: pb.GetItemRequest, context: Context) -> pb.GetItemResponse:
        gallery = self._gallery(request.gallery, access_of(context))
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
        gallery = self._gallery(request.gallery, access_of(context))
        size = paging.size(request.page_size, 100, 10_000)
        codec.check_enum(request.view, _VIEWS, "view")
        # The gallery's key, not the name in the request: that may be an alias, which moves.
        subject = request.subject.encode()
        binding = b"items\0%s\0%d\0%s" % (gallery.key.encode(), len(subject), subject)
        chosen = None
        if request.HasField("filter"):
            binding += request.filter.SerializeToString(deterministic=True)
            chosen = gallery_codec.filter_of(request.filter)
        after = paging.decode(request.page_token, binding)
        await self._wait_for(gallery, request.at_least, context)
        found, token = await self._read(
            lambda: gallery.list_items(
                after=after, limit=size + 1, filter=chosen, subject=request.subject
            )
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

    @driven
    @unary
    async def Search(self, request: pb.SearchRequest, context: Context) -> Encoded:
        codec.check_count(len(request.probes), "probes", self.limits)
        gallery = self._gallery(request.gallery, access_of(context))
        rule = codec.rule_of(request.rule)
        decision.check_rule(rule, search=True)
        codec.check_enum(request.view, _VIEWS, "view")
        codec.check_enum(request.group_by, _GROUPS, "group_by")
        k, ef, max_distance = _search_settings(request, self.limits)
        mean_of = _mean_of(request)
        if mean_of > 1 and request.group_by == pb.GROUP_BY_ITEM:
            raise InvalidInput(
                f"mean_of is {mean_of}, and an item has one distance; group by subject, or leave "
                "mean_of out",
                field="mean_of",
            )
        chosen = gallery_codec.filter_of(request.filter) if request.HasField("filter") else None
        await self._wait_for(gallery, request.at_least, context)
        await leave_front(context, len(request.probes))
        caller = caller_of(context)
        probed = await self._probed(gallery, request.probes, caller)
        question = searching.Question(
            k=k,
            filter=chosen,
            max_distance=max_distance,
            by_subject=request.group_by != pb.GROUP_BY_ITEM,
            exact=request.exact,
            ef=ef,
            mean_of=mean_of,
        )
        ask = searching.Ask(
            probes=probed.vectors,
            places=probed.places,
            errors=probed.errors,
            rule=rule,
            full=request.view == pb.ITEM_VIEW_FULL,
            calibrations=probed.calibrations,
            model_version=probed.version,
            ride=probed.ride,
            preprocess=probed.preprocess,
            deadline=caller.deadline,
            began=time.perf_counter(),
        )
        with self._admission.admit(len(probed.vectors), caller.client):
            try:
                reply = await self._searches.ask(
                    ask.company(gallery, question),
                    ask,
                    len(probed.vectors),
                    functools.partial(searching.answer, gallery, question, self.metrics),
                    is_quick=ask.is_quick(gallery, question),
                )
            except asyncio.CancelledError:
                ask.given_up = True
                raise
        self.metrics.search_decisions.labels(reply.evidence.value).inc(len(probed.vectors))
        return Encoded(reply.data, probed.version.partition("@")[0], timing_data=reply.timing)

    @driven
    @unary
    async def Verify(self, request: pb.VerifyRequest, context: Context) -> pb.VerifyResponse:
        gallery = self._gallery(request.gallery, access_of(context))
        if not request.subject:
            raise EmptyInput("subject is empty; name who the probe should be", field="subject")
        rule = codec.rule_of(request.rule)
        decision.check_rule(rule, search=False)
        prior = decision.check_prior(request.prior if request.HasField("prior") else None)
        mean_of = _mean_of(request)
        await self._wait_for(gallery, request.at_least, context)
        messages = [("probe", request.probe)]
        caller = caller_of(context)
        with self._engine(gallery, messages) as engine:
            readings = self._readings(engine, messages)
            embedded = await self._embed(gallery, engine, readings, caller)
            calibrations = _calibrations(engine, gallery.settings)
            version = _version_that_ran(engine, embedded)
        probe = embedded.outcomes[0]
        if isinstance(probe, TwinserveError):
            raise probe
        began = time.perf_counter()
        with self._admission.admit(1, caller.client):
            nearest = await self._read(lambda: gallery.verify(request.subject, probe, mean_of))
        seconds = time.perf_counter() - began
        settings = gallery.settings
        self.metrics.search.labels("Verify", settings.model).observe(seconds)
        judged = decision.nearest_of(calibrations, settings.metric, nearest.items_compared)
        # A mean is no nearer than the nearest item, so the rate promised of that one is kept.
        limit = decision.limit(rule, judged.calibration, judged.compared)
        likelihood = None
        if mean_of == 1:  # calibrations are of the nearest alone
            self.metrics.distances.labels(settings.model).observe(nearest.distance)
            likelihood = judged.likelihood
        return pb.VerifyResponse(
            score=codec.score_message(
                nearest.distance, decision.likelihood(nearest.distance, likelihood, prior)
            ),
            decision=codec.decision_message(limit, limit.outcome(nearest.distance)),
            item_id=nearest.item_id,
            items_compared=nearest.items_compared,
            consistency_token=nearest.token,
            model_version=version,
            timing=codec.timing_message(embedded.ride, embedded.preprocess, seconds),
        )

    def _gallery(self, name: str, access: Access, field: str = "gallery") -> Gallery:
        """Return the gallery that a call names.

        Raises:
            EmptyInput, PermissionDenied, GalleryNotFound, StoreDamaged: there is none for it.
        """
        self._check_reach(codec.required(name, field), access, field)
        gallery = self.galleries.get(name)
        if access.galleries is not None and not access.reaches(gallery.settings.name):
            raise access.out_of_reach(name, field)  # an alias that has moved meanwhile
        return gallery

    def _check_reach(self, name: str, access: Access, field: str) -> None:
        """Refuse a name that is out of reach, and an alias of a gallery that is.

        Raises:
            PermissionDenied: as said; it names what the caller named, and nothing else.
        """
        if access.galleries is None:
            return
        if not (access.reaches(name) and access.reaches(self.galleries.meaning(name))):
            raise access.out_of_reach(name, field)

    async def _probed(
        self, gallery: Gallery, messages: Sequence[shared.Input], caller: Caller
    ) -> _Probed:
        """Embed the probes of a search, as far as they are not ready.

        Raises:
            ItemsFailed: none can be searched for.
        """
        settings = gallery.settings
        ready = codec.ready_rows(messages, settings.dimension, settings.space_id)
        if ready is not None and distance.are_sound(ready, settings.metric):
            with self._engine(gallery, ()) as engine:
                return _Probed(ready, range(len(ready)), {}, _calibrations(engine, settings))
        named = [(f"probes[{i}]", message) for i, message in enumerate(messages)]
        with self._engine(gallery, named) as engine:
            readings = self._readings(engine, named)
            embedded = await self._embed(gallery, engine, readings, caller)
            calibrations = _calibrations(engine, settings)
            version = _version_that_ran(engine, embedded)
        errors = embedded.errors
        check_items(errors, len(messages))
        count_errors(self.metrics, errors)
        return _Probed(
            vectors=_vectors(embedded),
            places=[i for i in range(len(messages)) if i not in errors],
            errors=errors,
            calibrations=calibrations,
            version=version,
            ride=embedded.ride,
            preprocess=embedded.preprocess,
        )

    @contextlib.contextmanager
    def _engine(
        self, gallery: Gallery, messages: Sequence[tuple[str, shared.Input]]
    ) -> Iterator[Engine | None]:
        """Hold the engine of the gallery's space; None where none is served and none is needed."""
        settings = gallery.settings
        with contextlib.ExitStack() as stack:
            engine = None
            try:
                engine = stack.enter_context(
                    self.models.using_space(settings.model, settings.space_id)
                )
            except SpaceMismatch:
                if not all(message.WhichOneof("kind") == "embedding" for _, message in messages):
                    raise
            yield engine

    def _readings(
        self,
        engine: Engine | None,
        messages: Sequence[tuple[str, shared.Input]],
        *,
        digests: bool = False,
    ) -> list[Reading]:
        """Read the inputs of a call."""
        if engine is None:
            return [
                Reading(field, "embedding", codec.raw_input(message, field, self.limits))
                for field, message in messages
            ]
        return read_messages(messages, self.limits, engine.manifest.input, digests=digests)

    async def _embed(
        self, gallery: Gallery, engine: Engine | None, readings: Sequence[Reading], caller: Caller
    ) -> Embedded:
        """Embed inputs into the gallery's space; no model is needed when all are ready vectors."""
        settings = gallery.settings
        if engine is None or all(one.kind == "embedding" for one in readings):
            ready = tuple(_ready(one.raw, settings) for one in readings)
            embedded = Embedded(ready, "", 0.0, None)
        else:
            embedded = await embed_readings(engine, readings, caller, settings.dimension)
            self.metrics.embedded(engine.name, embedded.preprocess, embedded.ride)
        vectors = _vectors(embedded)
        if 0 < len(vectors) == len(readings) and distance.are_sound(vectors, settings.metric):
            return embedded
        outcomes: list[Vector | TwinserveError] = []
        for one, outcome in zip(readings, embedded.outcomes, strict=True):
            try:
                if not isinstance(outcome, TwinserveError):
                    # The gallery's metric may be stricter than the model's: cosine and zero.
                    distance.check_vectors(outcome, settings.metric)
            except TwinserveError as error:
                outcome = error
            if isinstance(outcome, TwinserveError) and not outcome.field:
                outcome = outcome.at(f"{one.field}.{one.kind}")
            outcomes.append(outcome)
        return Embedded(tuple(outcomes), embedded.space_id, embedded.preprocess, embedded.ride)

    def _read(self, call: Callable[[], Result]) -> Completion[Result]:
        return in_executor(self._readers, call)

    async def _read_many(self, inputs: int, call: Callable[[], Result]) -> Result:
        """Read so many inputs of a call in place, if they are few."""
        return call() if inputs <= FEW_INPUTS else await self._read(call)

    async def _change(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._changer, call)

    async def _wait_for(self, gallery: Gallery, token: str, context: Context) -> None:
        if token:
            remaining = context.time_remaining()
            patience = PATIENCE if remaining is None else remaining
            await self._read(lambda: gallery.wait_for(token, patience))


def _gallery_message(status: GalleryStatus, access: Access) -> gallery_pb2.Gallery:
    """Describe a gallery, with the aliases that the caller may know of."""
    reached = tuple(alias for alias in status.aliases if access.reaches(alias))
    return gallery_codec.gallery_message(replace(status, aliases=reached))


@dataclass(frozen=True, eq=False, slots=True)
class _Probed:
    """The probes of a search."""

    vectors: NDArray[np.float32]  # [n, dimension]
    places: Sequence[int]  # [n] of them among the call's
    errors: Mapping[int, TwinserveError]  # of its others
    calibrations: Sequence[Calibration]
    version: str = ""  # of the model that ran; "" if none did
    ride: Ride | None = None
    preprocess: float = 0.0  # seconds


def _calibrations(engine: Engine | None, settings: GallerySettings) -> list[Calibration]:
    """Return what is known of the gallery's distances; nothing when no model serves it."""
    if engine is None:
        return []
    manifest = engine.manifest
    return [
        calibration
        for calibration in manifest.calibrations
        if calibration.precision == manifest.precision
        and calibration.dimension == settings.dimension
    ]


def _vectors(embedded: Embedded) -> NDArray[np.float32]:
    """Return the embeddings that there are: [n, d], or empty."""
    vectors = [one for one in embedded.outcomes if not isinstance(one, TwinserveError)]
    if len(vectors) == 1:
        return vectors[0][None]
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)


def _version_that_ran(engine: Engine | None, embedded: Embedded) -> str:
    return "" if engine is None or embedded.ride is None else engine.version


def _content_digest(gallery: Gallery, one: Reading) -> bytes:
    """Say what makes an enrolled content the same: the input and the space."""
    if one.kind == "embedding":
        return b""  # the gallery takes the vector's own
    return hashlib.sha256(one.digest + gallery.settings.space_id.encode()).digest()


def _ready(
    raw: inputs.RawInput | TwinserveError, settings: GallerySettings
) -> Vector | TwinserveError:
    """A ready embedding of the gallery's space and shape; its values are checked later."""
    if isinstance(raw, TwinserveError):
        return raw
    assert isinstance(raw, Ready)
    try:
        return inputs.fitting(raw, settings.dimension, settings.space_id)
    except TwinserveError as error:
        return error


async def _once(work: Callable[[], Awaitable[Result]]) -> Result:
    """Do work for which nobody waits until there is room."""
    return await work()


def _body_digest(
    request: pb.EnrollRequest | pb.RemoveRequest | pb.MoveItemsRequest | pb.RenameSubjectRequest,
) -> bytes:
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


def _mean_of(request: pb.SearchRequest | pb.VerifyRequest) -> int:
    """Of how many of a subject's items its distance is the mean.

    Raises:
        LimitExceeded: outside its range.
    """
    if not 0 <= request.mean_of <= MAX_MEAN_OF:
        raise LimitExceeded(
            f"mean_of is {request.mean_of}; give 1 to {MAX_MEAN_OF}, or 0 for the nearest alone",
            field="mean_of",
            metadata={"limit": str(MAX_MEAN_OF), "value": str(request.mean_of)},
        )
    return request.mean_of or 1
