"""Which role each method asks for; one that is not here is closed to all but ADMIN.

Methods are named as gRPC names them. An HTTP route asks the door with the method that it stands
for; `METRICS` is the one that stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping

from twinserve.server.security.access import Role

METRICS = "/metrics"
HEALTH = "/grpc.health.v1.Health/"  # every method below it is open, also without a key

_READ, _WRITE, _ADMIN = Role.READ, Role.WRITE, Role.ADMIN

_BY_SERVICE: Mapping[str, Mapping[str, Role]] = {
    "twinserve.v1.EmbeddingService": {
        "Embed": _READ,
        "EmbedStream": _READ,
        "Compare": _READ,
    },
    "twinserve.v1.GalleryService": {
        "CreateGallery": _ADMIN,
        "GetGallery": _READ,
        "ListGalleries": _READ,
        "DeleteGallery": _ADMIN,
        "SetGalleryAlias": _ADMIN,
        "DeleteGalleryAlias": _ADMIN,
        "Enroll": _WRITE,
        "EnrollStream": _WRITE,
        "Remove": _WRITE,
        "MoveItems": _WRITE,
        "RenameSubject": _WRITE,
        "CountItems": _READ,
        "ExportItems": _READ,
        "BackupGalleries": _ADMIN,
        "GetItem": _READ,
        "ListItems": _READ,
        "Search": _READ,
        "Verify": _READ,
    },
    "twinserve.v1.ModelService": {
        "ListModels": _READ,
        "GetModel": _READ,
        "LoadModel": _ADMIN,
        "UnloadModel": _ADMIN,
        "SetAlias": _ADMIN,
        "DeleteAlias": _ADMIN,
        "StartShadow": _ADMIN,
        "StopShadow": _ADMIN,
    },
    "inference.GRPCInferenceService": {
        "ServerLive": _READ,
        "ServerReady": _READ,
        "ModelReady": _READ,
        "ServerMetadata": _READ,
        "ModelMetadata": _READ,
        "ModelInfer": _READ,
        "ModelConfig": _READ,
        "ModelStatistics": _READ,
    },
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _READ},
}

ROLES: Mapping[str, Role] = {
    METRICS: _READ,
    **{
        f"/{service}/{method}": role
        for service, methods in _BY_SERVICE.items()
        for method, role in methods.items()
    },
}

# What changes the server for everybody, whichever galleries they have: a key that is bound to
# some galleries may not do it, even one of ADMIN.
OF_ALL: frozenset[str] = frozenset(
    f"/{service}/{method}"
    for service, methods in {
        "twinserve.v1.GalleryService": ("BackupGalleries",),
        "twinserve.v1.ModelService": (
            "LoadModel",
            "UnloadModel",
            "SetAlias",
            "DeleteAlias",
            "StartShadow",
            "StopShadow",
        ),
    }.items()
    for method in methods
)


def is_open(method: str) -> bool:
    """Say whether a method is answered without a key."""
    return method.startswith(HEALTH)
