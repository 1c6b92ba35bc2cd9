"""Every method that the server offers asks for a role, and none by accident for too little."""

from __future__ import annotations

from twinserve.oip import inference_pb2
from twinserve.server.security.access import Role
from twinserve.server.security.methods import METRICS, OF_ALL, ROLES, is_open
from twinserve.v1 import embedding_service_pb2, gallery_service_pb2, model_service_pb2

FILES = (embedding_service_pb2, gallery_service_pb2, model_service_pb2, inference_pb2)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OFFERED = {
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_method_of_the_contract_has_a_role_and_nothing_else_has() -> None:
    assert set(ROLES) == OFFERED | {REFLECTION, METRICS}


def test_what_changes_anything_asks_for_more_than_read() -> None:
    reading = {name.rpartition("/")[2] for name, role in ROLES.items() if role is Role.READ}
    for begin in ("Enroll", "Remove", "Move", "Rename", "Create", "Delete", "Set", "Load", "Un"):
        assert not any(name.startswith(begin) for name in reading), begin
    assert {name for name, role in ROLES.items() if role is Role.ADMIN} >= OF_ALL
    models = {name for name, role in ROLES.items() if "ModelService" in name and role > Role.READ}
    assert models < OF_ALL, "models are everybody's"


def test_only_health_is_open() -> None:
    assert is_open("/grpc.health.v1.Health/Check")
    assert is_open("/grpc.health.v1.Health/Watch")
    assert not any(map(is_open, ROLES))
    assert not is_open("/grpc.health.v1.Healthy/Check")
