"""Calls of GalleryService that concern galleries as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twinserve import messages
from twinserve.client.calls import Call, Download, Pages, new_id, nothing
from twinserve.distance import Metric
from twinserve.errors import InvalidInput
from twinserve.messages import Backup, Gallery
from twinserve.v1 import gallery_pb2, gallery_service_pb2


def create_gallery(
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
) -> Call[Gallery]:
    """Make a gallery; repeating it with the same settings returns the one that is there.

    Args:
        name: `[a-z0-9][a-z0-9._-]{0,62}`.
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
        request_id=request_id or new_id(),
    )
    return Call(
        lambda stubs: stubs.gallery.CreateGallery,
        request,
        lambda reply: messages.from_gallery(reply.gallery),
        timeout,
    )


def get_gallery(name: str, *, timeout: float | None = None) -> Call[Gallery]:
    """Return a gallery as it is now."""
    request = gallery_service_pb2.GetGalleryRequest(name=name)
    return Call(
        lambda stubs: stubs.gallery.GetGallery,
        request,
        lambda reply: messages.from_gallery(reply.gallery),
        timeout,
    )


def list_galleries(*, page_size: int = 0, timeout: float | None = None) -> Pages[Gallery]:
    """Iterate over all galleries by name, fetching page after page (0: the server's size)."""
    return Pages(
        lambda stubs: stubs.gallery.ListGalleries,
        gallery_service_pb2.ListGalleriesRequest(page_size=page_size),
        lambda page: map(messages.from_gallery, page.galleries),
        timeout,
    )


def delete_gallery(name: str, *, timeout: float | None = None) -> Call[None]:
    """Remove a gallery with all its items, for good.

    Raises:
        GalleryNotFound: no such gallery; also when the connection broke after the server had
            deleted it, and a retry asked again.
        FailedPrecondition: aliases stand for it, or the name is an alias itself.
    """
    request = gallery_service_pb2.DeleteGalleryRequest(name=name)
    return Call(lambda stubs: stubs.gallery.DeleteGallery, request, nothing, timeout)


def set_gallery_alias(alias: str, gallery: str, *, timeout: float | None = None) -> Call[str]:
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
    return Call(
        lambda stubs: stubs.gallery.SetGalleryAlias, request, lambda reply: reply.previous, timeout
    )


def delete_gallery_alias(alias: str, *, timeout: float | None = None) -> Call[None]:
    """End an alias of a gallery, which stays.

    Raises:
        NotFound: there is none of this name; also when a retry asked again.
    """
    request = gallery_service_pb2.DeleteGalleryAliasRequest(alias=alias)
    return Call(lambda stubs: stubs.gallery.DeleteGalleryAlias, request, nothing, timeout)


def backup_galleries(
    folder: str,
    galleries: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    *,
    timeout: float | None = None,
) -> Download[Backup]:
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

    def read(message: gallery_service_pb2.BackupGalleriesResponse) -> Backup | None:
        if message.done:
            return Backup(message.path, message.bytes_done)
        if progress is not None:
            progress(message.gallery, message.bytes_done, message.bytes_total)
        return None

    request = gallery_service_pb2.BackupGalleriesRequest(folder=folder, galleries=galleries)
    return Download(lambda stubs: stubs.gallery.BackupGalleries, request, read, timeout=timeout)


def _key_type(key: str, word: str) -> gallery_pb2.MetadataType.ValueType:
    name = f"METADATA_TYPE_{word.upper()}"
    if name not in gallery_pb2.MetadataType.keys() or word.upper() == "UNSPECIFIED":  # noqa: SIM118
        raise InvalidInput(
            f"{word!r} is no type of metadata key {key!r}; give text, integer, number, flag or "
            "time",
            field="gallery.metadata_keys",
        )
    return gallery_pb2.MetadataType.Value(name)
