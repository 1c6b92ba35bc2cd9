"""Messages and metadata that are more than they seem, or more than anybody needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from twinserve.server.front import driven


@driven
async def count(request: bytes, context: Any) -> bytes:
    return str(len(request)).encode()


def test_a_message_is_bounded_by_what_it_unpacks_to(run_front: Callable[..., Any]) -> None:
    limit = [("grpc.max_receive_message_length", 1 << 20)]
    running = run_front({"Count": ("uu", count)}, options=limit)
    with grpc.insecure_channel(
        f"127.0.0.1:{running.port}", compression=grpc.Compression.Gzip
    ) as channel:
        call = channel.unary_unary("/s/Count")
        assert call(bytes(900_000), timeout=10) == b"900000"
        packed = bytes(20 << 20)  # 20 KiB on the wire
        with pytest.raises(grpc.RpcError) as refused:
            call(packed, timeout=30)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_above_its_bound_ends_the_call_and_nothing_else(
    run_front: Callable[..., Any],
) -> None:
    running = run_front({"Count": ("uu", count)})
    call = running.channel().unary_unary("/s/Count")
    for metadata in ([("a", "x" * 64_000)], [(f"k{i}", "x" * 100) for i in range(500)]):
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=metadata, timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(b"x", timeout=10) == b"1"
