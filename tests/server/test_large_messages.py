"""The budget of bytes over the wire: few large messages fill it, and small ones pass by it."""

from __future__ import annotations

import io
import re
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status
from PIL import Image

from tests import twins
from tests.conftest import RunningServer
from tests.server import wire
from twinserve.client import Client, Embeddings
from twinserve.v1 import embedding_service_pb2 as pb
from twinserve.v1 import shared_pb2

MIB = 1 << 20
ROOM = ("--max-bytes", "4M", "--max-message-bytes", "2M", "--max-input-bytes", "2M")
ONE = ("--runners", "1", "--threads", "1")
CALLS = 24


def large_picture(number: int) -> bytes:
    """A picture of 9 megapixels, some twentieth of a second to decode, in a mebibyte of file."""
    file = io.BytesIO()
    Image.new("L", (3000, 3000), number).save(file, "PNG")
    return file.getvalue() + bytes(MIB - file.tell())


def gauge(server: RunningServer, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/metrics") as reply:
        text = reply.read().decode()
    found = re.search(rf"^twinserve_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return float(found[1])


def until_empty(server: RunningServer) -> None:
    end = time.monotonic() + 20
    while gauge(server, "message_bytes"):
        assert time.monotonic() < end, "bytes of calls that have ended are still counted"
        time.sleep(0.05)


@pytest.fixture
def server(
    start_server: Callable[..., RunningServer], twin_file: Path, tmp_path: Path
) -> RunningServer:
    return start_server("--model", twin_file, "--data-dir", tmp_path, *ROOM, *ONE)


def test_calls_beyond_the_room_for_bytes_are_told_when_to_come_again(
    server: RunningServer,
) -> None:
    assert gauge(server, "message_bytes_limit") == 4 * MIB
    requests = [
        pb.EmbedRequest(inputs=[shared_pb2.Input(image=large_picture(i))]) for i in range(CALLS)
    ]
    small = pb.EmbedRequest(inputs=[wire.tensor(twins.classes_of_pixels(1, 1)[0][0])])
    with server.channel() as channel:
        embed = wire.Stubs(channel).embedding.Embed
        calls = [embed.future(request) for request in requests]
        assert len(embed(small).results) == 1, "small messages need no room"
        ended = [call.exception(60) for call in calls]
        refused = [rpc_status.from_call(error) for error in ended if error is not None]
        assert 0 < len(refused) < CALLS, "the first are answered, and not all have room"
        for status in refused:
            assert status is not None
            assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            assert wire.reason(status) == "QUEUE_FULL"
            assert wire.detail(status, details.RetryInfo).retry_delay.ToMilliseconds() > 0
        until_empty(server)
        assert len(embed(requests[0]).results) == 1
    assert gauge(server, "admitted_rows") == 0
    assert gauge(server, 'refused_calls_total{reason="QUEUE_FULL"}') == len(refused)


def test_streams_of_more_than_there_is_room_for_get_all_their_answers(
    server: RunningServer,
) -> None:
    pictures = [large_picture(i) for i in range(6)]

    def stream(_: int) -> list[Embeddings]:
        with Client(server.target) as client:
            return list(client.embed_stream(iter(pictures), batch=1))

    with Client(server.target) as client:
        expected = np.concatenate([client.embed([one]).vectors for one in pictures])
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(stream, range(6)))
    for parts in found:
        assert [part.errors for part in parts] == [(None,)] * len(pictures)
        got = np.concatenate([part.vectors for part in parts])
        np.testing.assert_allclose(got, expected, atol=1e-5)
    until_empty(server)
