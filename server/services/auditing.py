"""What the audit log tells of each call: names and counts of its request, never its contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.rpc import status_pb2

from twinserve.errors import Code
from twinserve.server.request_ids import request_id_of
from twinserve.server.security import audit
from twinserve.server.security.access import OPEN, Access, Role
from twinserve.server.security.methods import ROLES

# Fields of requests, told under these names where a request has them.
_TEXTS = ("gallery", "alias", "name", "version", "file", "model", "candidate", "folder")
_COUNTED = ("items", "ids")
# What a reply says of what was done.
_DONE = ("failed", "removed", "moved")

# The methods that are told of, without their services: those that take more than reading.
CHANGES = frozenset(name.rpartition("/")[2] for name, role in ROLES.items() if role > Role.READ)


def record(method: str, request: Any, context: Any, found: object) -> None:
    """Tell how a call, or one message of a stream, ended.

    Args:
        method: its name without the service, one of `CHANGES`.
        request: its message.
        context: of the call.
        found: its reply, or the status that it failed with; None where it was cancelled, and may
            have been done.
    """
    if not audit.is_on():
        return
    access: Access = getattr(context, "access", OPEN)
    code = "OK"
    if found is None:
        code = "CANCELLED"
    elif isinstance(found, status_pb2.Status):
        code = Code(found.code).name
    facts: dict[str, audit.Fact] = {**_asked(request)}
    if code == "OK":
        facts |= {name: getattr(found, name, 0) for name in _DONE}
    facts["request_id"] = request_id_of(context)
    facts["idempotency_key"] = getattr(request, "request_id", "")
    audit.record(
        key=access.client, peer=context.peer() or "", method=method, code=code, facts=facts
    )


def _asked(request: Any) -> Mapping[str, audit.Fact]:
    own = _OWN.get(type(request).__name__)
    if own is not None:
        return own(request)
    fields = request.DESCRIPTOR.fields_by_name
    facts: dict[str, audit.Fact] = {
        name: getattr(request, name) for name in _TEXTS if name in fields
    }
    for name in _COUNTED:
        if name in fields:
            found = getattr(request, name)
            facts["items"] = len(getattr(found, "ids", found))
    for name in request.DESCRIPTOR.oneofs_by_name:
        if name in ("target", "source"):  # whether by ids, subject or filter
            facts["by"] = request.WhichOneof(name) or ""
    if getattr(request, "force", False):
        facts["force"] = 1
    return facts


_OWN: Mapping[str, Callable[[Any], Mapping[str, audit.Fact]]] = {
    "CreateGalleryRequest": lambda request: {"gallery": request.gallery.name},
    "DeleteGalleryRequest": lambda request: {"gallery": request.name},
    "BackupGalleriesRequest": lambda request: {
        "folder": request.folder,
        "galleries": list(request.galleries),
    },
    "LoadModelRequest": lambda request: {
        "file": request.file,
        "name": request.name,
        "aliases": list(request.aliases),
        "force": int(request.force),
    },
}
