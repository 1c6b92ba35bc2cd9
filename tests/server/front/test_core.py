"""What the front stands on: names and habits of a private API, checked at every upgrade."""

from __future__ import annotations

import grpc
import pytest

from twinserve.server.front import core


@pytest.mark.parametrize("name", core.NAMES)
def test_grpcio_still_has_what_the_front_is_built_on(name: str) -> None:
    assert hasattr(core.cygrpc, name), (
        f"grpcio {grpc.__version__} has no cygrpc.{name} any more; read what grpc/_server.py uses "
        "in its place, and change server/front/core.py"
    )


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("CompletionQueue", {"poll", "shutdown"}),
        (
            "Server",
            {
                "add_http2_port",
                "cancel_all_calls",
                "destroy",
                "register_completion_queue",
                "request_call",
                "shutdown",
                "start",
            },
        ),
        ("ReceiveMessageOperation", {"message"}),
        ("ReceiveCloseOnServerOperation", {"cancelled"}),
        ("RequestCallEvent", {"call", "call_details", "invocation_metadata", "success", "tag"}),
        ("BatchOperationEvent", {"batch_operations", "success", "tag"}),
        ("CallDetails", {"deadline", "method"}),
        ("Call", {"peer", "start_server_batch"}),
    ],
)
def test_grpcios_objects_have_the_members_that_the_front_uses(kind: str, names: set[str]) -> None:
    missing = names - set(dir(getattr(core.cygrpc, kind)))
    assert not missing, (
        f"cygrpc.{kind} of grpcio {grpc.__version__} has no {sorted(missing)} any more; read "
        "grpc/_server.py, and change server/front/core.py"
    )


def test_every_status_code_has_its_number_on_the_wire() -> None:
    assert core._STATUS[grpc.StatusCode.OK] == 0
    assert core._STATUS[grpc.StatusCode.UNAUTHENTICATED] == 16
    assert len(set(core._STATUS.values())) == 17
