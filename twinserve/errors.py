"""Every error that leaves twinserve, with its canonical code and its stable reason.

    TwinserveError
    ├── InvalidInput             INVALID_ARGUMENT
    │   ├── UndecodableImage
    │   ├── LimitExceeded
    │   ├── WrongModality
    │   ├── WrongShape
    │   ├── EmptyInput
    │   ├── NotFinite
    │   ├── ZeroVector
    │   ├── UndeclaredKey
    │   └── BadPageToken
    ├── NotFound                 NOT_FOUND
    │   ├── ModelNotFound · GalleryNotFound · ItemNotFound · SubjectNotFound
    ├── AlreadyExists            ALREADY_EXISTS
    ├── FailedPrecondition       FAILED_PRECONDITION
    │   ├── SpaceMismatch
    │   └── ClientClosed         raised by a client, never sent
    ├── Exhausted                RESOURCE_EXHAUSTED, always with a retry delay
    │   ├── QueueFull · ClientOverShare · IndexDebtTooHigh · DiskFull
    │   └── GalleryFull
    ├── DeadlineExceeded         DEADLINE_EXCEEDED
    ├── Unavailable              UNAVAILABLE
    ├── Unauthenticated          UNAUTHENTICATED
    ├── PermissionDenied         PERMISSION_DENIED
    ├── NotBuilt                 UNIMPLEMENTED
    ├── InternalFault            INTERNAL
    └── offline, before anything is served (never on the wire)
        ManifestError · GateFailed · DataError · ConfigError · ProviderUnavailable · StoreDamaged

A message says what was wrong, with the value and the limit, and what to do about it. Programs
switch on `reason`, never on the text. One function of the server turns these into a gRPC status.
The docstring of a class says when it is raised and, after "Do:", what helps: the documentation's
table of reasons is made of them.
"""

from __future__ import annotations

import enum
from typing import ClassVar

DOMAIN = "twinserve"


class Code(enum.IntEnum):
    """Canonical status codes, with the numbers of google.rpc.Code."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TwinserveError(Exception):
    """Base of all.

    Args:
        message: what was wrong, and what to do.
        field: path of the offending request field, such as `inputs[3].image`.
        resource: (type, name) of what was not found, full or in the way.
        retry_after: seconds after which a retry may succeed.
        metadata: further facts for programs, such as the limit that was passed.

    Where every item of a call failed, the client's exception is the first one's, and `items` holds
    those that the server had room to send, each with its place in `field`.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        resource: tuple[str, str] | None = None,
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.resource = resource
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        self.items: tuple[TwinserveError, ...] = ()

    def again(self) -> TwinserveError:
        """Return a fresh copy: one instance raised to many waiters would share its traceback."""
        return self.at(self.field)

    def at(self, field: str) -> TwinserveError:
        """Return a copy whose field path is `field`."""
        return type(self)(
            self.message,
            field=field,
            resource=self.resource,
            retry_after=self.retry_after,
            metadata=self.metadata,
        )


class InvalidInput(TwinserveError):
    """The request cannot be served as it is; repeating it changes nothing.

    Do: Read the message and `field`, correct the request, and do not repeat it as it was.
    """

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_INPUT"


class UndecodableImage(InvalidInput):
    """The bytes are no whole picture of a format that is decoded: cut off, damaged, or another
    format.

    Do: Send a whole PNG, JPEG, WebP, BMP or GIF; look at the file, and at what cut it short.
    """

    reason = "IMAGE_UNDECODABLE"


class LimitExceeded(InvalidInput):
    """Something is larger than its limit: pixels, bytes, tokens, items, metadata. `metadata`
    names the limit.

    Do: Send less at a time, scale the picture down, or let texts be cut (`truncate`); the
    operator can raise the server's limits.
    """

    reason = "LIMIT_EXCEEDED"


class WrongModality(InvalidInput):
    """An image, text, tensor or embedding was sent where the model takes another kind.

    Do: Send what `twinserve inspect` or GetModel shows as the modality, or name another model.
    """

    reason = "WRONG_MODALITY"


class WrongShape(InvalidInput):
    """A tensor or embedding has another shape or data type than the model takes.

    Do: Compare with the input contract of `twinserve inspect`; a ready embedding has the
    dimension of its space.
    """

    reason = "WRONG_SHAPE"


class EmptyInput(InvalidInput):
    """An input, or a list of inputs, is empty.

    Do: Leave it out, or find out why nothing was read.
    """

    reason = "EMPTY_INPUT"


class NotFinite(InvalidInput):
    """A number is NaN or infinite.

    Do: Look for it where the vector or tensor is made; nothing compares with it.
    """

    reason = "NOT_FINITE"


class ZeroVector(InvalidInput):
    """A vector of zeros has no direction, so cosine cannot compare it.

    Do: Look for the input that gave it, often an empty one; leave it out.
    """

    reason = "ZERO_VECTOR"


class UndeclaredKey(InvalidInput):
    """A filter names a metadata key that the gallery did not declare, which nothing could
    search quickly.

    Do: Filter by a declared key (`gallery show` lists them), or make a gallery that declares it
    and copy the items.
    """

    reason = "UNDECLARED_KEY"


class BadPageToken(InvalidInput):
    """A page token is of another list, filter or gallery, or was altered.

    Do: Begin the list anew, without a token.
    """

    reason = "BAD_PAGE_TOKEN"


class NotFound(TwinserveError):
    """What the request names is not there.

    Do: Check the name; `resource` says the type and the name.
    """

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No model of this name, version or alias is loaded.

    Do: `twinserve model list` shows what is; load it, or correct the name.
    """

    reason = "MODEL_NOT_FOUND"


class GalleryNotFound(NotFound):
    """No gallery or alias has this name.

    Do: `twinserve gallery list` shows what there is; make it with `gallery create`.
    """

    reason = "GALLERY_NOT_FOUND"


class ItemNotFound(NotFound):
    """The gallery has no item of this id.

    Do: Check the id (`gallery items`); it may have been removed or replaced.
    """

    reason = "ITEM_NOT_FOUND"


class SubjectNotFound(NotFound):
    """No item in the gallery is of this subject.

    Do: Check its spelling (`gallery items --subject`); a subject exists as long as it has
    items.
    """

    reason = "SUBJECT_NOT_FOUND"


class AlreadyExists(TwinserveError):
    """A gallery or alias of this name exists with other settings, or a subject of this name has
    items.

    Do: Take another name, or say that both shall become one (`merge`).
    """

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(TwinserveError):
    """The server is not in a state in which this can be done; the message names what is in the
    way.

    Do: Change that first, then repeat the call; repeating alone does not help.
    """

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class SpaceMismatch(FailedPrecondition):
    """A vector, or a gallery, is of another space than the model: their distances would mean
    nothing. Both ids are named.

    Do: Embed again with the model of the gallery, or fill a new gallery with the new model
    (docs/models.md).
    """

    reason = "SPACE_MISMATCH"


class ClientClosed(FailedPrecondition):
    """The client was closed before the call, or during it.

    Do: Make a new client, or make the calls inside its `with` block.
    """

    reason = "CLIENT_CLOSED"


class Exhausted(TwinserveError):
    """The server has no room for this now; `retry_after` says when it may.

    Do: Wait that long and repeat, as the Python client does by itself; less at a time helps
    too.
    """

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class QueueFull(Exhausted):
    """As much is inside or waiting as the server takes: rows, bytes, calls, or writes that wait
    for the disk.

    Do: Repeat after `retry_after`; where it lasts, send fewer at a time, or give the server
    more processors.
    """

    reason = "QUEUE_FULL"


class ClientOverShare(Exhausted):
    """This client has as much inside as is its share while others wait too.

    Do: Repeat after `retry_after`, with fewer calls at a time; a stream is held back by itself.
    """

    reason = "CLIENT_OVER_SHARE"


class IndexDebtTooHigh(Exhausted):
    """More vectors were enrolled than the index can follow with graphs.

    Do: Repeat after `retry_after`; EnrollStream waits by itself.
    """

    reason = "INDEX_DEBT"


class DiskFull(Exhausted):
    """The disk of the data folder is full; nothing of the request was written.

    Do: Free room on it, or move the data folder; searches go on meanwhile.
    """

    reason = "DISK_FULL"


class GalleryFull(Exhausted):
    """The gallery has reached the `max_items` or `max_bytes` that it was made with.

    Do: Remove items, or make a gallery with more room; waiting does not help.
    """

    reason = "GALLERY_FULL"


class DeadlineExceeded(TwinserveError):
    """The call's deadline passed, or could not have been met, so that its work was not begun.

    Do: Give the call more time, or ask when less is waiting; `retry_after`, where it is there,
    is the queue's time.
    """

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unavailable(TwinserveError):
    """No server answers, or it is not warm yet, or it is stopping.

    Do: Repeat with a pause, at another server if there is one; writes repeat safely with their
    `request_id`.
    """

    code = Code.UNAVAILABLE
    reason = "NOT_SERVING"


class Unauthenticated(TwinserveError):
    """The call has no API key, or one that the server does not know.

    Do: Give a valid key (`--api-key`, TWINSERVE_API_KEY, `Client(api_key=…)`).
    """

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(TwinserveError):
    """The key is known and may not do this, or not with this gallery.

    Do: Ask the operator for a key with the role and the galleries that it takes.
    """

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class NotBuilt(TwinserveError):
    """The call, or the option, is part of the contract and not built in this version.

    Do: Use another way, or a newer version.
    """

    code = Code.UNIMPLEMENTED
    reason = "NOT_BUILT"


class InternalFault(TwinserveError):
    """A fault of ours; the message names the log entry, never the stack.

    Do: Look that entry up in the server's log and report it; the call may be repeated.
    """


class ManifestError(FailedPrecondition):
    """The file is not a twin, or its manifest is damaged or of a newer schema.

    Do: Export or import it anew, or use a newer twinserve.
    """

    reason = "BAD_MANIFEST"


class GateFailed(FailedPrecondition):
    """The exported twin does not repeat its source; nothing was written.

    Do: The message names the figure that failed and its limit: take another precision, or
    import with other settings.
    """

    reason = "GATE_FAILED"


class DataError(InvalidInput):
    """The data set cannot be used as it is.

    Do: Let `twinserve data check` name all that is wrong with it, and mend it.
    """

    reason = "BAD_DATA"


class ConfigError(InvalidInput):
    """A setting is unknown, or outside its range.

    Do: Correct it; `--set x=` lists all settings of a training, `--help` all flags.
    """

    reason = "BAD_CONFIG"


class ProviderUnavailable(FailedPrecondition):
    """The execution provider that was asked for does not run here.

    Do: `twinserve doctor` says what is missing; install that, or ask for `--device cpu`.
    """

    reason = "PROVIDER_UNAVAILABLE"


class StoreDamaged(TwinserveError):
    """A database file of a gallery is damaged; it was copied aside and is not served, or takes
    no more changes.

    Do: Put a backup in its place (docs/storage.md), or enrol anew and delete the gallery.
    """

    code = Code.DATA_LOSS
    reason = "STORE_DAMAGED"
