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
    code = Code.INVALID_ARGUMENT
    reason = "INVALID_INPUT"


class UndecodableImage(InvalidInput):
    reason = "IMAGE_UNDECODABLE"


class LimitExceeded(InvalidInput):
    reason = "LIMIT_EXCEEDED"


class WrongModality(InvalidInput):
    reason = "WRONG_MODALITY"


class WrongShape(InvalidInput):
    reason = "WRONG_SHAPE"


class EmptyInput(InvalidInput):
    reason = "EMPTY_INPUT"


class NotFinite(InvalidInput):
    reason = "NOT_FINITE"


class ZeroVector(InvalidInput):
    reason = "ZERO_VECTOR"


class UndeclaredKey(InvalidInput):
    reason = "UNDECLARED_KEY"


class BadPageToken(InvalidInput):
    reason = "BAD_PAGE_TOKEN"


class NotFound(TwinserveError):
    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class ModelNotFound(NotFound):
    reason = "MODEL_NOT_FOUND"


class GalleryNotFound(NotFound):
    reason = "GALLERY_NOT_FOUND"


class ItemNotFound(NotFound):
    reason = "ITEM_NOT_FOUND"


class SubjectNotFound(NotFound):
    reason = "SUBJECT_NOT_FOUND"


class AlreadyExists(TwinserveError):
    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(TwinserveError):
    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class SpaceMismatch(FailedPrecondition):
    reason = "SPACE_MISMATCH"


class ClientClosed(FailedPrecondition):
    """The client was closed before the call, or during it.

    Do: Make a new client, or make the calls inside its `with` block.
    """

    reason = "CLIENT_CLOSED"


class Exhausted(TwinserveError):
    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class QueueFull(Exhausted):
    reason = "QUEUE_FULL"


class ClientOverShare(Exhausted):
    reason = "CLIENT_OVER_SHARE"


class IndexDebtTooHigh(Exhausted):
    reason = "INDEX_DEBT"


class DiskFull(Exhausted):
    reason = "DISK_FULL"


class GalleryFull(Exhausted):
    reason = "GALLERY_FULL"


class DeadlineExceeded(TwinserveError):
    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unavailable(TwinserveError):
    code = Code.UNAVAILABLE
    reason = "NOT_SERVING"


class Unauthenticated(TwinserveError):
    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(TwinserveError):
    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class NotBuilt(TwinserveError):
    code = Code.UNIMPLEMENTED
    reason = "NOT_BUILT"


class InternalFault(TwinserveError):
    """A fault of ours; the message names the log entry, never the stack."""


class ManifestError(FailedPrecondition):
    """The file is not a twin, or its manifest is damaged or of a newer schema."""

    reason = "BAD_MANIFEST"


class GateFailed(FailedPrecondition):
    """The exported twin does not repeat its source; nothing was written."""

    reason = "GATE_FAILED"


class DataError(InvalidInput):
    """The data set cannot be used as it is."""

    reason = "BAD_DATA"


class ConfigError(InvalidInput):
    """A setting is unknown, or outside its range."""

    reason = "BAD_CONFIG"


class ProviderUnavailable(FailedPrecondition):
    """The execution provider that was asked for does not run here."""

    reason = "PROVIDER_UNAVAILABLE"


class StoreDamaged(TwinserveError):
    """A database file of a gallery is damaged; it was copied aside and is not served."""

    code = Code.DATA_LOSS
    reason = "STORE_DAMAGED"
