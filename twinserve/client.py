"""The Python client: one connection, blocking calls, typed results with numpy.

In: pictures, texts (with the name of a prompt where the model has some), arrays or ready vectors.
Out: the dataclasses of `twinserve.messages`, or the exceptions of `twinserve.errors`, of the very
class that the server raised (told by its reason, never by its text). A call has one deadline that
covers all its attempts: UNAVAILABLE is tried again with a growing pause, and RESOURCE_EXHAUSTED
after the delay that the server names. Every write carries a request_id that its retries repeat, so
that none is done twice. No torch, no onnxruntime.

    with Client("127.0.0.1:50051") as client:
        for hits in client.search("people", [Path("probe.png")]).checked():
            print(hits.match, [hit.subject for hit in hits])
"""

from __future__ import annotations

import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from twinserve import bulk, downloads, messages
from twinserve.distance import Metric
from twinserve.errors import Exhausted, InternalFault, InvalidInput, TwinserveError, Unavailable
from twinserve.messages import (
    Backup,
    Comparison,
    Embeddings,
    Encoding,
    Enrolled,
    EnrollItem,
    Exported,
    Gallery,
    Health,
    Hit,
    Hits,
    InputLike,
    Item,
    ItemCount,
    MetadataValue,
    Model,
    Moved,
    Removed,
    Results,
    Shadow,
    Text,
    Timing,
    Vector,
    Verification,
)
from twinserve.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    gallery_pb2,
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    shared_pb2,
)

__all__ = [
    "Backup",
    "Client",
    "Comparison",
    "Embeddings",
    "Encoding",
    "EnrollItem",
    "Enrolled",
    "Exported",
    "Gallery",
    "Health",
    "Hit",
    "Hits",
    "Item",
    "ItemCount",
    "Model",
    "Moved",
    "Removed",
    "Results",
    "Shadow",
    "Text",
    "Timing",
    "Vector",
    "Verification",
]

T = TypeVar("T")
Filter = Mapping[str, MetadataValue | Sequence[MetadataValue]] | shared_pb2.Filter

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts on UNAVAILABLE
# A large twin takes a minute to load and to warm.
LOAD_SECONDS = 600.0
# A stream of enrolments is held back, and not refused, while an index catches up.
ENROLL_SECONDS = 300.0
_OPTIONS = [
    # The limit on a message is the server's to set; a client that refuses replies is of no use.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that restarts is found again in a blink, not after gRPC's second and more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The retries are ours: gRPC's own know no RetryInfo.
    ("grpc.enable_retries", 0),
]


class Client:
    """A connection to one server; safe to share between threads.

    Args:
        target: host:port, or any name that gRPC resolves.
        api_key: sent as a bearer token with every call; None sends none.
        timeout: seconds that a call may take, its retries included.
        credentials: of TLS; None connects in plain text.
        unavailable_for: seconds for which a server that cannot be reached is tried again; None
            means as long as the call's deadline.
        priority: of every call: "high", "normal" or "low"; None is the server's default, normal.

    Every call raises the classes of `twinserve.errors`.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
        unavailable_for: float | None = None,
        priority: Literal["high", "normal", "low"] | None = None,
    ) -> None:
        self.target = target
        self._timeout = timeout
        self._unavailable_for = timeout if unavailable_for is None else unavailable_for
        key = None if api_key is None else f"Bearer {api_key}"
        sent = (("authorization", key), ("twinserve-priority", priority))
        self._metadata = tuple((name, value) for name, value in sent if value is not None)
        self._channel = (
            grpc.insecure_channel(target, options=_OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=_OPTIONS)
        )
        self._embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._gallery = gallery_service_pb2_grpc.GalleryServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls of other threads end as cancelled."""
        self._channel.close()

    # ---- embeddings ----------------------------------------------------------------------

    def embed(
        self,
        inputs: Sequence[InputLike],
        model: str = "",
        dimensions: int | None = None,
        *,
        prompt: str | None = None,
        truncate: bool | None = None,
        encoding: Encoding | None = None,
        atomic: bool = False,
        raise_for_errors: bool = False,
        timeout: float | None = None,
    ) -> Embeddings:
        """Return the embeddings of some inputs: float32 [n, dimension], or bits.

        Args:
            inputs: 1 to the server's limit of items.
            model: name, name@version or alias; "" is the only one served.
            dimensions: one of the model's truncations; None is the full dimension.
            prompt: name of the model's prompt put before each text that names none itself (a
                `Text` may); "" is none, None the model's default.
            truncate: whether a text over the limit is cut; None is the model's own rule.
            encoding: how the vectors travel, in one block. They come back as float32 [n, dimension]
                from "float32" (exact), "float16" (half the bytes; 11 bits of precision, beyond
                65504 clipped) and "int8" (a quarter; each row in steps of a 127th of its largest);
                from "binary" (a 32nd) as bool [n, dimension], true where a coordinate is above 0,
                which is for Hamming distance only. None: exact, an embedding of its own per input.
            atomic: let the server refuse the whole call for one item's error.
            raise_for_errors: raise the first item's error instead of leaving it in `errors`.
            timeout: seconds, in place of the client's own.
        """
        request = embedding_service_pb2.EmbedRequest(
            model=model,
            inputs=[messages.to_input(value, prompt) for value in inputs],
            options=messages.to_options(dimensions, truncate, encoding),
            atomic=atomic,
        )
        embeddings = messages.from_embed_response(
            self._call(self._embedding.Embed, request, timeout)
        )
        if raise_for_errors:
            for error in embeddings.errors:
                if error is not None:
                    raise error
        return embeddings

    def embed_stream(
        self,
        inputs: Iterable[InputLike],
        model: str = "",
        dimensions: int | None = None,
        *,
        prompt: str | None = None,
        truncate: bool | None = None,
        encoding: Encoding | None = None,
        batch: int = 32,
        timeout: float | None = None,
    ) -> Iterator[Embeddings]:
        """Embed any number of inputs over one stream, and give their embeddings batch by batch.

        The batches come in the order of the inputs, which are taken from their iterator no faster
        than the server answers. A failed input has its error in its batch's `errors`; a batch that
        failed as a whole has vectors of no width. A server that stops is left for another.

        Args:
            inputs: any number.
            model: as for `embed`.
            dimensions: as for `embed`.
            prompt: as for `embed`.
            truncate: as for `embed`.
            encoding: as for `embed`.
            batch: inputs of one message.
            timeout: seconds that one reply may take, in place of the client's own.
        """
        options = messages.to_options(dimensions, truncate, encoding)
        source = iter(inputs)
        parts = iter(lambda: list(itertools.islice(source, batch)), [])
        return bulk.embed_stream(
            lambda sent: self._embedding.EmbedStream(sent, metadata=self._metadata),
            (
                embedding_service_pb2.EmbedRequest(
                    model=model,
                    inputs=[messages.to_input(value, prompt) for value in part],
                    options=options,
                )
                for part in parts
            ),
            self._timeout if timeout is None else timeout,
            self._error,
            self._pause,
        )

    def compare(
        self,
        pairs: Sequence[tuple[InputLike, InputLike]],
        far: float | None = None,
        threshold: float | None = None,
        prior: float | None = None,
        *,
        model: str = "",
        dimensions: int | None = None,
        prompt: str | None = None,
        atomic: bool = False,
        raise_for_errors: bool = False,
        timeout: float | None = None,
    ) -> Results[Comparison]:
        """Say of each pair whether both inputs show the same subject.

        Each truncation of the model is compared under a calibration of its own.

        Args:
            pairs: 1 to the server's limit of items.
            far: false accept rate of the decision; or
            threshold: match iff distance <= threshold; neither: the model's default.
            prior: probability of "same" before looking, in (0, 1); None is 0.5.
            model: as for `embed`.
            dimensions: one of the model's truncations; None is that of the first ready vector
                among the pairs, or the full dimension where there is none.
            prompt: as for `embed`.
            atomic: let the server refuse the whole call for one pair's error.
            raise_for_errors: raise the first pair's error instead of leaving it in its place.
            timeout: seconds, in place of the client's own.
        """
        request = embedding_service_pb2.CompareRequest(
            model=model,
            pairs=[
                embedding_service_pb2.Pair(
                    first=messages.to_input(first, prompt),
                    second=messages.to_input(second, prompt),
                )
                for first, second in pairs
            ],
            rule=messages.to_rule(far, threshold),
            prior=prior,
            atomic=atomic,
            dimensions=dimensions,
        )
        results = messages.from_compare_response(
            self._call(self._embedding.Compare, request, timeout)
        )
        return _checked(results, raise_for_errors)

    # ---- galleries -----------------------------------------------------------------------

    def create_gallery(
        self,
        name: str,
        *,
        model: str = "",
        dimension: int = 0,
        metric: Metric | str | None = None,
        metadata_keys: Mapping[str, str] | None = None,
        max_items: int = 0,
        max_bytes: int = 0,
        hnsw: gallery_pb2.HnswConfig | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Gallery:
        """Make a gallery; repeating it with the same settings returns the one that is there.

        Args:
            name: [a-z0-9][a-z0-9._-]{0,62}.
            model: the twin whose space it takes; "" is the only one served.
            dimension: one of the twin's truncations; 0 is its full dimension.
            metric: None is the twin's own.
            metadata_keys: the keys that can be filtered by, each with its type: text, integer,
                number, flag or time.
            max_items: 0 is the server's limit.
            max_bytes: that its database may take on the server's disk; 0 is no limit.
            hnsw: index parameters; None is the server's defaults.
            request_id: a UUID; None makes one.
            timeout: seconds, in place of the client's own.

        Raises:
            AlreadyExists: a gallery of that name with other settings.
        """
        request = gallery_service_pb2.CreateGalleryRequest(
            gallery=gallery_pb2.Gallery(
                name=name,
                model=model,
                dimension=dimension,
                metric=messages.to_metric(metric),
                hnsw=hnsw,
                metadata_keys=[
                    gallery_pb2.MetadataKey(key=key, type=_key_type(key, word))
                    for key, word in (metadata_keys or {}).items()
                ],
                max_items=max_items,
                max_bytes=max_bytes,
            ),
            request_id=request_id or _new_id(),
        )
        return messages.from_gallery(
            self._call(self._gallery.CreateGallery, request, timeout).gallery
        )

    def get_gallery(self, name: str, *, timeout: float | None = None) -> Gallery:
        """Return a gallery as it is now."""
        request = gallery_service_pb2.GetGalleryRequest(name=name)
        return messages.from_gallery(self._call(self._gallery.GetGallery, request, timeout).gallery)

    def list_galleries(
        self, *, page_size: int = 0, timeout: float | None = None
    ) -> Iterator[Gallery]:
        """Iterate over all galleries by name, fetching page after page (0: the server's size)."""
        token = ""
        while True:
            request = gallery_service_pb2.ListGalleriesRequest(
                page_size=page_size, page_token=token
            )
            page = self._call(self._gallery.ListGalleries, request, timeout)
            yield from map(messages.from_gallery, page.galleries)
            token = page.next_page_token
            if not token:
                return

    def delete_gallery(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a gallery with all its items, for good.

        Raises:
            GalleryNotFound: no such gallery; also when the connection broke after the server had
                deleted it, and a retry asked again.
            FailedPrecondition: aliases stand for it, or the name is an alias itself.
        """
        request = gallery_service_pb2.DeleteGalleryRequest(name=name)
        self._call(self._gallery.DeleteGallery, request, timeout)

    def set_gallery_alias(self, alias: str, gallery: str, *, timeout: float | None = None) -> str:
        """Let a name stand for a gallery from the next call on; every call but create and delete
        takes it in place of the gallery's own.

        Args:
            alias: new, or standing for another gallery so far; no gallery's name.
            gallery: by its own name.
            timeout: seconds, in place of the client's own.

        Returns:
            The gallery that it stood for before; "" where it is new. After a broken connection a
            retry may find its own work: then that is `gallery`.

        Raises:
            AlreadyExists: a gallery has this name.
            FailedPrecondition: the alias stands for a gallery of another metric, or (SpaceMismatch)
                of another space; delete the alias first.
        """
        request = gallery_service_pb2.SetGalleryAliasRequest(alias=alias, gallery=gallery)
        return self._call(self._gallery.SetGalleryAlias, request, timeout).previous

    def delete_gallery_alias(self, alias: str, *, timeout: float | None = None) -> None:
        """End an alias of a gallery, which stays.

        Raises:
            NotFound: there is none of this name; also when a retry asked again.
        """
        request = gallery_service_pb2.DeleteGalleryAliasRequest(alias=alias)
        self._call(self._gallery.DeleteGalleryAlias, request, timeout)

    def enroll(
        self,
        gallery: str,
        items: Sequence[EnrollItem],
        *,
        prompt: str | None = None,
        atomic: bool = False,
        raise_for_errors: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Results[Enrolled]:
        """Add or replace items; what is returned as Enrolled is on the server's disk.

        Args:
            gallery: name or alias.
            items: 1 to the server's limit; each id at most once.
            prompt: as for `embed`.
            atomic: all items or none.
            raise_for_errors: raise the first item's error; the others stay enrolled.
            request_id: a UUID; None makes one. Repeating a call with the same id and items within
                24 hours returns the first answer.
            timeout: seconds, in place of the client's own.
        """
        request = messages.to_enroll_request(
            gallery, items, prompt=prompt, request_id=request_id or _new_id(), atomic=atomic
        )
        results = messages.from_enroll_response(self._call(self._gallery.Enroll, request, timeout))
        return _checked(results, raise_for_errors)

    def enroll_stream(
        self,
        gallery: str,
        items: Iterable[EnrollItem],
        *,
        prompt: str | None = None,
        batch: int = 32,
        timeout: float | None = None,
    ) -> Iterator[Results[Enrolled]]:
        """Enrol any number of items over one stream, and give their results batch by batch.

        The batches come in the order of the items, which are taken from their iterator no faster
        than the server has them on disk; a server that is full, or whose index lags behind, is
        waited for. A failed item has its error in its place. After a lost connection, the batches
        without an answer are sent again under the same request_id, so that none is done twice.

        Args:
            gallery: name or alias.
            items: any number; each id at most once in a batch.
            prompt: as for `embed`.
            batch: items of one message.
            timeout: seconds that one reply may take, retries included; None is the client's own,
                and at least 300.

        Raises:
            TwinserveError: a fault of a whole batch, such as an unknown gallery. The batches
                before it were given; of those after it, some may be enrolled.
        """
        source = iter(items)
        parts = iter(lambda: list(itertools.islice(source, batch)), [])
        return bulk.answers(
            lambda sent: self._gallery.EnrollStream(sent, metadata=self._metadata),
            (
                messages.to_enroll_request(gallery, part, prompt=prompt, request_id=_new_id())
                for part in parts
            ),
            lambda _, reply: messages.from_enroll_response(reply),
            max(self._timeout, ENROLL_SECONDS) if timeout is None else timeout,
            self._error,
            self._pause,
        )

    def remove(
        self,
        gallery: str,
        ids: Sequence[str] | None = None,
        *,
        subject: str | None = None,
        filter: Filter | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Removed:
        """Delete items by id, by subject or by filter; exactly one of the three.

        Unknown ids are no error, and are not counted.
        """
        if sum(choice is not None for choice in (ids, subject, filter)) != 1:
            raise InvalidInput("remove takes exactly one of ids, subject and filter")
        request = gallery_service_pb2.RemoveRequest(
            gallery=gallery, request_id=request_id or _new_id()
        )
        if ids is not None:
            request.ids.ids.extend(ids)
        elif subject is not None:
            request.subject = subject
        else:
            request.filter.CopyFrom(messages.to_filter(filter) or shared_pb2.Filter())
        response = self._call(self._gallery.Remove, request, timeout)
        return Removed(response.removed, response.consistency_token)

    def move_items(
        self,
        gallery: str,
        subject: str,
        ids: Sequence[str] | None = None,
        *,
        filter: Filter | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Moved:
        """Give items another subject, chosen by ids or by filter; "" makes each its own.

        Their embeddings stay; those that have the subject already are not counted.

        Raises:
            ItemNotFound: an id is not there; nothing was moved.
        """
        if (ids is None) == (filter is None):
            raise InvalidInput("move_items takes exactly one of ids and filter")
        request = gallery_service_pb2.MoveItemsRequest(
            gallery=gallery, subject=subject, request_id=request_id or _new_id()
        )
        if ids is not None:
            request.ids.SetInParent()
            request.ids.ids.extend(ids)
        else:
            request.filter.CopyFrom(messages.to_filter(filter) or shared_pb2.Filter())
        response = self._call(self._gallery.MoveItems, request, timeout)
        return Moved(response.moved, response.consistency_token)

    def rename_subject(
        self,
        gallery: str,
        subject: str,
        new_subject: str,
        *,
        merge: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Moved:
        """Give all items of a subject another one, in one step.

        Raises:
            SubjectNotFound: nobody of that name in the gallery.
            AlreadyExists: the new name has items already, and `merge` is False.
        """
        request = gallery_service_pb2.RenameSubjectRequest(
            gallery=gallery,
            subject=subject,
            new_subject=new_subject,
            merge=merge,
            request_id=request_id or _new_id(),
        )
        response = self._call(self._gallery.RenameSubject, request, timeout)
        return Moved(response.moved, response.consistency_token)

    def count_items(
        self,
        gallery: str,
        *,
        filter: Filter | None = None,
        subject: str = "",
        at_least: str = "",
        timeout: float | None = None,
    ) -> ItemCount:
        """Count the items that pass a filter, of one subject or ("") of all, in one state.

        `at_least` is a consistency token; the read waits for that state, up to its deadline.
        """
        request = gallery_service_pb2.CountItemsRequest(
            gallery=gallery,
            filter=messages.to_filter(filter),
            subject=subject,
            at_least=at_least,
        )
        response = self._call(self._gallery.CountItems, request, timeout)
        return ItemCount(response.item_count, response.subject_count, response.consistency_token)

    def get_item(
        self,
        gallery: str,
        id: str,
        *,
        with_embedding: bool = False,
        at_least: str = "",
        timeout: float | None = None,
    ) -> Item:
        """Return one item, with its vector when asked.

        `at_least` is a consistency token; the read waits for that state, up to its deadline.
        """
        request = gallery_service_pb2.GetItemRequest(
            gallery=gallery, id=id, with_embedding=with_embedding, at_least=at_least
        )
        response = self._call(self._gallery.GetItem, request, timeout)
        embedding = response.embedding if response.HasField("embedding") else None
        return messages.from_item(response.item, embedding)

    def list_items(
        self,
        gallery: str,
        *,
        filter: Filter | None = None,
        subject: str = "",
        full: bool = False,
        at_least: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[Item]:
        """Iterate over all items by id, fetching page after page (0: the server's size).

        Where a subject is named, over its items only. Writes meanwhile neither repeat nor skip an
        item that they do not touch. `full` adds metadata and times.
        """
        token = ""
        while True:
            request = gallery_service_pb2.ListItemsRequest(
                gallery=gallery,
                page_size=page_size,
                page_token=token,
                filter=messages.to_filter(filter),
                view=_view(full),
                at_least=at_least,
                subject=subject,
            )
            page = self._call(self._gallery.ListItems, request, timeout)
            yield from map(messages.from_item, page.items)
            token = page.next_page_token
            if not token:
                return

    def export_items(
        self,
        gallery: str,
        *,
        filter: Filter | None = None,
        after: str = "",
        with_embedding: bool = True,
        at_least: str = "",
        timeout: float | None = None,
    ) -> Iterator[Exported]:
        """Iterate over all items with metadata, times and embeddings, by id, some at a time.

        They are read no faster than they are taken. Where the connection breaks, the iterator goes
        on after the last item. Writes meanwhile neither repeat nor skip an item that they do not
        touch.

        Args:
            gallery: name or alias.
            filter: only items with these metadata values.
            after: an item id; only items with a greater one, bytewise.
            with_embedding: False leaves the embeddings out.
            at_least: a consistency token; the read waits for that state.
            timeout: seconds that the next items may take, in place of the client's own.

        Raises:
            GalleryNotFound: no such gallery, or it was deleted meanwhile.
        """
        request = gallery_service_pb2.ExportItemsRequest(
            gallery=gallery,
            after=after,
            filter=messages.to_filter(filter),
            without_embedding=not with_embedding,
            at_least=at_least,
        )
        return downloads.export(
            lambda asked: self._gallery.ExportItems(asked, metadata=self._metadata),
            request,
            self._timeout if timeout is None else timeout,
            self._error,
            self._pause,
        )

    def backup_galleries(
        self,
        folder: str,
        galleries: Sequence[str] = (),
        progress: Callable[[str, int, int], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> Backup:
        """Have the server copy galleries into a new folder, while they are read and written.

        The folder is a data folder of its own, from which a server starts. Interrupting the call
        ends the backup, and leaves nothing of it; it is not begun anew by itself.

        Args:
            folder: to make, below the server's --backup-dir; one name, no path.
            galleries: names or aliases; none means all.
            progress: told now and then which gallery is copied, and the bytes done, of how many
                about.
            timeout: seconds without any news that are waited for, in place of the client's own.

        Raises:
            FailedPrecondition: the server has no --backup-dir, or a gallery cannot be copied.
            AlreadyExists: there is such a folder.
            DiskFull: it does not fit.
        """
        request = gallery_service_pb2.BackupGalleriesRequest(folder=folder, galleries=galleries)
        for message in downloads.read(
            lambda: self._gallery.BackupGalleries(request, metadata=self._metadata),
            self._timeout if timeout is None else timeout,
            self._error,
        ):
            if message.done:
                return Backup(message.path, message.bytes_done)
            if progress is not None:
                progress(message.gallery, message.bytes_done, message.bytes_total)
        raise InternalFault("the server ended the backup without saying that it is whole")

    def search(
        self,
        gallery: str,
        probes: Sequence[InputLike],
        top_k: int = 10,
        far: float | None = None,
        threshold: float | None = None,
        fpir: float | None = None,
        *,
        prompt: str | None = None,
        filter: Filter | None = None,
        max_distance: float | None = None,
        by_item: bool = False,
        exact: bool = False,
        ef: int | None = None,
        mean_of: int = 1,
        full: bool = False,
        at_least: str = "",
        raise_for_errors: bool = False,
        timeout: float | None = None,
    ) -> Results[Hits]:
        """Say who each probe is, or nobody.

        Args:
            gallery: name or alias.
            probes: 1 to the server's limit of items.
            top_k: the most hits per probe, up to 1000.
            far: pairwise false accept rate of the decision; or
            threshold: match iff distance <= threshold; or
            fpir: the chance that a probe of nobody in the gallery gets any match.
            prompt: as for `embed`.
            filter: only items with these metadata values.
            max_distance: drop hits farther than this.
            by_item: a hit is an item, not a subject by its nearest item.
            exact: scan every item instead of asking the index.
            ef: breadth of the index search; None is the gallery's.
            mean_of: a subject's distance is the mean of so many of its nearest items, up to 100;
                such hits have no probability.
            full: add metadata and times to the items.
            at_least: a consistency token; the read waits for that state, up to its deadline.
            raise_for_errors: raise the first probe's error instead of leaving it in its place.
            timeout: seconds, in place of the client's own.
        """
        request = gallery_service_pb2.SearchRequest(
            gallery=gallery,
            probes=[messages.to_input(probe, prompt) for probe in probes],
            top_k=top_k,
            filter=messages.to_filter(filter),
            max_distance=max_distance,
            rule=messages.to_rule(far, threshold, fpir),
            group_by=(
                gallery_service_pb2.GROUP_BY_ITEM
                if by_item
                else gallery_service_pb2.GROUP_BY_SUBJECT
            ),
            exact=exact,
            ef=ef,
            mean_of=mean_of,
            view=_view(full),
            at_least=at_least,
        )
        results = messages.from_search_response(self._call(self._gallery.Search, request, timeout))
        return _checked(results, raise_for_errors)

    def verify(
        self,
        gallery: str,
        subject: str,
        probe: InputLike,
        far: float | None = None,
        threshold: float | None = None,
        prior: float | None = None,
        *,
        prompt: str | None = None,
        mean_of: int = 1,
        at_least: str = "",
        timeout: float | None = None,
    ) -> Verification:
        """Say whether a probe is a subject; `far` holds for the subject as a whole.

        `prompt` is as for `embed`, `mean_of` as for `search`.

        Raises:
            SubjectNotFound: nobody of that name in the gallery.
        """
        request = gallery_service_pb2.VerifyRequest(
            gallery=gallery,
            subject=subject,
            probe=messages.to_input(probe, prompt),
            rule=messages.to_rule(far, threshold),
            at_least=at_least,
            prior=prior,
            mean_of=mean_of,
        )
        return messages.from_verify_response(self._call(self._gallery.Verify, request, timeout))

    # ---- models and the server -----------------------------------------------------------

    def models(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[Model]:
        """Iterate over the loaded models by name and version."""
        token = ""
        while True:
            request = model_service_pb2.ListModelsRequest(page_size=page_size, page_token=token)
            page = self._call(self._model.ListModels, request, timeout)
            yield from map(messages.from_model, page.models)
            token = page.next_page_token
            if not token:
                return

    def model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """Return one loaded model by name, name@version or alias; "" is the only one served."""
        request = model_service_pb2.GetModelRequest(name=name)
        return messages.from_model(self._call(self._model.GetModel, request, timeout).model)

    def load_model(
        self,
        file: str,
        name: str = "",
        *,
        aliases: Sequence[str] = (),
        force: bool = False,
        timeout: float = LOAD_SECONDS,
    ) -> Model:
        """Have the server load and warm a twin, and move aliases to it, without failing a call.

        Args:
            file: below the server's --model-dir.
            name: to serve it under; "" is the manifest's own.
            aliases: that are to point at it.
            force: do it even where galleries are left behind.
            timeout: seconds; loading goes on when it has passed, and asking again waits for it.

        Raises:
            FailedPrecondition: not a twin, another file serves under its name and version, or
                galleries would be left behind.
            NotFound: no such file.
        """
        request = model_service_pb2.LoadModelRequest(
            file=file, name=name, aliases=aliases, force=force
        )
        return messages.from_model(self._call(self._model.LoadModel, request, timeout).model)

    def unload_model(
        self,
        name: str,
        version: str = "",
        *,
        force: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Have the server stop serving a version, once the calls that run are done.

        Args:
            name: of the model.
            version: of it; "" where only one is served.
            force: do it even where aliases point at it, which go too, or galleries need it.
            timeout: seconds, in place of the client's own.

        Raises:
            ModelNotFound: it is not served; also when the connection broke after it was unloaded,
                and a retry asked again.
            FailedPrecondition: aliases or galleries need it.
        """
        request = model_service_pb2.UnloadModelRequest(name=name, version=version, force=force)
        self._call(self._model.UnloadModel, request, timeout)

    def set_alias(
        self,
        alias: str,
        name: str,
        version: str = "",
        *,
        force: bool = False,
        timeout: float | None = None,
    ) -> Model:
        """Point an alias, new or not, at a loaded version ("" is the newest), and return that.

        Raises:
            FailedPrecondition: another model has this name, or galleries would be left behind.
        """
        request = model_service_pb2.SetAliasRequest(
            alias=alias, name=name, version=version, force=force
        )
        return messages.from_model(self._call(self._model.SetAlias, request, timeout).model)

    def delete_alias(
        self, alias: str, *, force: bool = False, timeout: float | None = None
    ) -> None:
        """Take an alias away.

        Raises:
            NotFound: there is none.
            FailedPrecondition: galleries would be left behind.
        """
        request = model_service_pb2.DeleteAliasRequest(alias=alias, force=force)
        self._call(self._model.DeleteAlias, request, timeout)

    def start_shadow(
        self, candidate: str, model: str, share: float, *, timeout: float | None = None
    ) -> Shadow:
        """Have a share of a model's live calls sent to a candidate too; callers see nothing of it.

        The report so far is `model(candidate).shadow`.

        Args:
            candidate: name, name@version or alias.
            model: likewise.
            share: of the calls, in (0, 1].
            timeout: seconds, in place of the client's own.

        Raises:
            FailedPrecondition: both are one, take other inputs, or one of both is in a run.
        """
        request = model_service_pb2.StartShadowRequest(
            candidate=candidate, model=model, share=share
        )
        return messages.from_shadow(self._call(self._model.StartShadow, request, timeout).shadow)

    def stop_shadow(self, candidate: str, *, timeout: float | None = None) -> Shadow:
        """End a shadow run, and return its last report.

        Raises:
            NotFound: it is not the candidate of a run; also when a retry asked again.
        """
        request = model_service_pb2.StopShadowRequest(candidate=candidate)
        return messages.from_shadow(self._call(self._model.StopShadow, request, timeout).shadow)

    def health(self, service: str = "", *, timeout: float | None = None) -> Health:
        """Return what the server says of itself, or of one service; asked once, without retry.

        Raises:
            Unavailable: nobody answers there.
            NotFound: the server knows no such service.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = self._health.Check(
                request, timeout=self._timeout if timeout is None else timeout
            )
        except grpc.RpcError as failure:
            raise self._error(failure) from failure
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        return Health(name) if name in set(Health) else Health.UNKNOWN

    # ---- one call ------------------------------------------------------------------------

    def _call(self, method: Callable[..., T], request: Any, timeout: float | None) -> T:
        start = time.monotonic()
        deadline = start + (self._timeout if timeout is None else timeout)
        attempt = 0
        while True:
            try:
                return method(
                    request,
                    timeout=max(deadline - time.monotonic(), 0.001),
                    metadata=self._metadata,
                )
            except grpc.RpcError as failure:
                error = self._error(failure)
                now = time.monotonic()
                pause = self._pause(error, attempt, now - start)
                # A pause past the deadline would only hide the reason behind DEADLINE_EXCEEDED.
                if pause is None or now + pause >= deadline:
                    raise error from failure
            time.sleep(pause)
            attempt += 1

    def _pause(self, error: TwinserveError, attempt: int, elapsed: float) -> float | None:
        """Return the seconds to wait before the next attempt, or None where there is to be none."""
        if isinstance(error, Unavailable):
            if elapsed >= self._unavailable_for:
                return None
            pause = min(_FIRST_PAUSE * 2.0**attempt, _LONGEST_PAUSE)
            # Clients that lost the same server must not come back in step.
            return max(error.retry_after or 0.0, pause * random.uniform(0.5, 1.0))
        # Without a delay from the server, "exhausted" (a message too large, say) will not pass.
        return error.retry_after if isinstance(error, Exhausted) else None

    def _error(self, failure: grpc.RpcError) -> TwinserveError:
        try:
            status = rpc_status.from_call(failure)
        except ValueError:  # details that contradict the status: trust the status
            status = None
        if status is None:
            code = failure.code()
            number = int(code.value[0])
            text = failure.details() or code_pb2.Code.Name(number)
            if code is grpc.StatusCode.UNAVAILABLE:
                text = f"no server answers at {self.target} ({text}); check that it runs there"
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                text = f"{self.target} did not answer in time; give the call a longer timeout"
            status = status_pb2.Status(code=number, message=text)
        return messages.from_status(status)


def _checked(results: Results[T], raise_for_errors: bool) -> Results[T]:
    if raise_for_errors:
        results.checked()
    return results


def _new_id() -> str:
    return str(uuid.uuid4())


def _view(full: bool) -> gallery_service_pb2.ItemView.ValueType:
    return gallery_service_pb2.ITEM_VIEW_FULL if full else gallery_service_pb2.ITEM_VIEW_BASIC


def _key_type(key: str, word: str) -> gallery_pb2.MetadataType.ValueType:
    name = f"METADATA_TYPE_{word.upper()}"
    if name not in gallery_pb2.MetadataType.keys() or word.upper() == "UNSPECIFIED":  # noqa: SIM118
        raise InvalidInput(
            f"{word!r} is no type of metadata key {key!r}; give text, integer, number, flag or "
            "time",
            field="gallery.metadata_keys",
        )
    return gallery_pb2.MetadataType.Value(name)
