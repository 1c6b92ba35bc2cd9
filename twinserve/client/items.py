"""Calls of GalleryService that concern the items of one gallery."""

from __future__ import annotations

from collections.abc import Sequence

from twinserve import messages
from twinserve.client.calls import (
    WINDOW,
    Call,
    Download,
    Pages,
    Progress,
    Source,
    Upload,
    checked,
    counted,
    length,
    new_id,
)
from twinserve.errors import InvalidInput
from twinserve.messages import (
    Enrolled,
    EnrollItem,
    Exported,
    Filter,
    Item,
    ItemCount,
    Moved,
    Removed,
    Results,
)
from twinserve.v1 import gallery_service_pb2, shared_pb2

# A stream of enrolments is held back, and not refused, while an index catches up.
ENROLL_SECONDS = 300.0


def enroll(
    gallery: str,
    items: Sequence[EnrollItem],
    *,
    prompt: str | None = None,
    atomic: bool = False,
    raise_for_errors: bool = False,
    request_id: str | None = None,
    timeout: float | None = None,
) -> Call[Results[Enrolled]]:
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
        gallery, items, prompt=prompt, request_id=request_id or new_id(), atomic=atomic
    )
    read = checked(messages.from_enroll_response, raise_for_errors)
    return Call(lambda stubs: stubs.gallery.Enroll, request, read, timeout)


def enroll_stream(
    gallery: str,
    items: Source[EnrollItem],
    *,
    prompt: str | None = None,
    batch: int = 32,
    window: int = WINDOW,
    progress: Progress | None = None,
    timeout: float | None = None,
) -> Upload[Results[Enrolled]]:
    """Enrol any number of items over one stream, and give their results batch by batch.

    The batches come in the order of the items, which are taken from their iterator no faster
    than the server has them on disk; a server that is full, or whose index lags behind, is
    waited for. A failed item has its error in its place. After a lost connection, the batches
    without an answer are sent again under the same request_id, so that none is done twice.

    Args:
        gallery: name or alias.
        items: any number, even without end, each id at most once in a batch; `AsyncClient` takes
            async iterables too.
        prompt: as for `embed`.
        batch: items of one message.
        window: messages under way at once, so that batch x window items are held.
        progress: told after each batch how many items are done, and of how many (None where the
            items have no length).
        timeout: seconds that one reply may take, retries included; None is the client's own,
            and at least 300.

    Raises:
        TwinserveError: a fault of a whole batch, such as an unknown gallery. The batches
            before it were given; of those after it, some may be enrolled.
    """

    def request(part: Sequence[EnrollItem], number: int) -> gallery_service_pb2.EnrollRequest:
        return messages.to_enroll_request(gallery, part, prompt=prompt, request_id=new_id())

    def read(sent: object, reply: gallery_service_pb2.EnrollResponse) -> Results[Enrolled]:
        return messages.from_enroll_response(reply)

    return Upload(
        lambda stubs: stubs.gallery.EnrollStream,
        items,
        batch,
        request,
        counted(read, progress, length(items)),
        timeout,
        at_least=ENROLL_SECONDS,
        window=window,
    )


def remove(
    gallery: str,
    ids: Sequence[str] | None = None,
    *,
    subject: str | None = None,
    filter: Filter | None = None,
    request_id: str | None = None,
    timeout: float | None = None,
) -> Call[Removed]:
    """Delete items by id, by subject or by filter; exactly one of the three.

    Unknown ids are no error, and are not counted.
    """
    if sum(choice is not None for choice in (ids, subject, filter)) != 1:
        raise InvalidInput("remove takes exactly one of ids, subject and filter")
    request = gallery_service_pb2.RemoveRequest(gallery=gallery, request_id=request_id or new_id())
    if ids is not None:
        request.ids.ids.extend(ids)
    elif subject is not None:
        request.subject = subject
    else:
        request.filter.CopyFrom(messages.to_filter(filter) or shared_pb2.Filter())
    return Call(
        lambda stubs: stubs.gallery.Remove,
        request,
        lambda reply: Removed(reply.removed, reply.consistency_token),
        timeout,
    )


def move_items(
    gallery: str,
    subject: str,
    ids: Sequence[str] | None = None,
    *,
    filter: Filter | None = None,
    request_id: str | None = None,
    timeout: float | None = None,
) -> Call[Moved]:
    """Give items another subject, chosen by ids or by filter; "" makes each its own.

    Their embeddings stay; those that have the subject already are not counted.

    Raises:
        ItemNotFound: an id is not there; nothing was moved.
    """
    if (ids is None) == (filter is None):
        raise InvalidInput("move_items takes exactly one of ids and filter")
    request = gallery_service_pb2.MoveItemsRequest(
        gallery=gallery, subject=subject, request_id=request_id or new_id()
    )
    if ids is not None:
        request.ids.SetInParent()
        request.ids.ids.extend(ids)
    else:
        request.filter.CopyFrom(messages.to_filter(filter) or shared_pb2.Filter())
    return Call(lambda stubs: stubs.gallery.MoveItems, request, _moved, timeout)


def rename_subject(
    gallery: str,
    subject: str,
    new_subject: str,
    *,
    merge: bool = False,
    request_id: str | None = None,
    timeout: float | None = None,
) -> Call[Moved]:
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
        request_id=request_id or new_id(),
    )
    return Call(lambda stubs: stubs.gallery.RenameSubject, request, _moved, timeout)


def count_items(
    gallery: str,
    *,
    filter: Filter | None = None,
    subject: str = "",
    at_least: str = "",
    timeout: float | None = None,
) -> Call[ItemCount]:
    """Count the items that pass a filter, of one subject or ("") of all, in one state.

    `at_least` is a consistency token; the read waits for that state, up to its deadline.
    """
    request = gallery_service_pb2.CountItemsRequest(
        gallery=gallery,
        filter=messages.to_filter(filter),
        subject=subject,
        at_least=at_least,
    )
    return Call(
        lambda stubs: stubs.gallery.CountItems,
        request,
        lambda reply: ItemCount(reply.item_count, reply.subject_count, reply.consistency_token),
        timeout,
    )


def get_item(
    gallery: str,
    id: str,
    *,
    with_embedding: bool = False,
    at_least: str = "",
    timeout: float | None = None,
) -> Call[Item]:
    """Return one item, with its vector when asked.

    `at_least` is a consistency token; the read waits for that state, up to its deadline.
    """
    request = gallery_service_pb2.GetItemRequest(
        gallery=gallery, id=id, with_embedding=with_embedding, at_least=at_least
    )

    def read(reply: gallery_service_pb2.GetItemResponse) -> Item:
        embedding = reply.embedding if reply.HasField("embedding") else None
        return messages.from_item(reply.item, embedding)

    return Call(lambda stubs: stubs.gallery.GetItem, request, read, timeout)


def list_items(
    gallery: str,
    *,
    filter: Filter | None = None,
    subject: str = "",
    full: bool = False,
    at_least: str = "",
    page_size: int = 0,
    timeout: float | None = None,
) -> Pages[Item]:
    """Iterate over all items by id, fetching page after page (0: the server's size).

    Where a subject is named, over its items only. Writes meanwhile neither repeat nor skip an
    item that they do not touch. `full` adds metadata and times.
    """
    request = gallery_service_pb2.ListItemsRequest(
        gallery=gallery,
        page_size=page_size,
        filter=messages.to_filter(filter),
        view=messages.to_view(full),
        at_least=at_least,
        subject=subject,
    )
    return Pages(
        lambda stubs: stubs.gallery.ListItems,
        request,
        lambda page: map(messages.from_item, page.items),
        timeout,
    )


def export_items(
    gallery: str,
    *,
    filter: Filter | None = None,
    after: str = "",
    with_embedding: bool = True,
    at_least: str = "",
    progress: Progress | None = None,
    timeout: float | None = None,
) -> Download[Exported]:
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
        progress: told how many items came, and of how many about (None with a filter or `after`).
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
    done, whole = 0, filter is None and not after

    def read(message: gallery_service_pb2.ExportItemsResponse) -> Exported | None:
        nonlocal done
        if not message.items:
            return None
        exported = messages.from_export_response(message)
        done += len(exported.items)
        if progress is not None:
            progress(done, max(done, exported.item_count) if whole else None)
        return exported

    def go_on_after(
        request: gallery_service_pb2.ExportItemsRequest,
        message: gallery_service_pb2.ExportItemsResponse,
    ) -> None:
        if message.items:
            request.after = message.items[-1].id

    return Download(lambda stubs: stubs.gallery.ExportItems, request, read, go_on_after, timeout)


def _moved(
    reply: gallery_service_pb2.MoveItemsResponse | gallery_service_pb2.RenameSubjectResponse,
) -> Moved:
    return Moved(reply.moved, reply.consistency_token)
