"""What both clients are made from: keys, certificates, addresses, and few packages."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fake_server import FakeServer
from twinserve.client import TLS, AsyncClient, Client
from twinserve.errors import ConfigError, Unavailable
from twinserve.v1 import gallery_service_pb2

ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'


def serving(**settings: Any) -> FakeServer:
    server = FakeServer(**settings)
    server.on("GetGallery", gallery_service_pb2.GetGalleryResponse())
    return server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for the name twins.test that vouches for itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=twins.test"),
            *("-addext", "subjectAltName=DNS:twins.test"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


class TestKeys:
    @pytest.mark.parametrize(
        ("given", "sent"),
        [(None, "Bearer from the environment"), ("own", "Bearer own"), ("", None)],
    )
    def test_the_key_is_the_environments_unless_one_is_given(
        self, monkeypatch: pytest.MonkeyPatch, given: str | None, sent: str | None
    ) -> None:
        monkeypatch.setenv("TWINSERVE_API_KEY", "from the environment")
        server = serving()
        try:
            with Client(server.target, api_key=given) as client:
                client.get_gallery("g")
        finally:
            server.stop()
        assert server.metadata[0].get("authorization") == sent

    def test_a_key_read_from_a_file_may_end_with_its_line(self) -> None:
        server = serving()
        try:
            with Client(server.target, api_key="tws_shop_x\n") as client:
                client.get_gallery("g")
        finally:
            server.stop()
        assert server.metadata[0].get("authorization") == "Bearer tws_shop_x"

    @pytest.mark.parametrize("key", ["two\nlines", "tws_shöp_x"])
    def test_a_key_that_cannot_be_sent_is_refused_before_a_call(self, key: str) -> None:
        with pytest.raises(ConfigError, match="the one line that `twinserve key new` printed"):
            Client(api_key=key)


class TestTLS:
    def test_both_clients_check_the_server_and_show_who_they_are(
        self, certificate: tuple[Path, Path]
    ) -> None:
        cert, key = certificate
        credentials = grpc.ssl_server_credentials(
            [(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), require_client_auth=True
        )
        server = serving(credentials=credentials)
        tls = TLS(ca=cert, cert=cert, key=str(key), server_name="twins.test")

        async def call() -> None:
            async with AsyncClient(server.target, tls=tls) as client:
                await client.get_gallery("g")

        try:
            with Client(server.target, tls=tls) as client:
                client.get_gallery("g")
            asyncio.run(call())
            for other, advice in (
                # 127.0.0.1 is not the certificate's name.
                (TLS(ca=cert, cert=cert, key=key), "for another name"),
                (TLS(ca=cert, server_name="twins.test"), "a client's certificate"),
                (TLS(server_name="twins.test"), "name the one that did"),
                (None, "whether it speaks TLS"),
            ):
                with (
                    Client(server.target, tls=other, unavailable_for=0.0) as client,
                    pytest.raises(Unavailable, match=advice),
                ):
                    client.get_gallery("g", timeout=20.0)
            assert len(server.requests) == 2
        finally:
            server.stop()

    def test_files_that_cannot_be_used_are_named_at_once(
        self, certificate: tuple[Path, Path]
    ) -> None:
        cert, _ = certificate
        with pytest.raises(ConfigError, match=r"ca of TLS cannot be read \(.*nothing\.pem"):
            Client(tls=TLS(ca="nothing.pem"))
        with pytest.raises(ConfigError, match="cert and key together"):
            Client(tls=TLS(cert=cert))
        with pytest.raises(ConfigError, match="tls and credentials"):
            Client(tls=TLS(), credentials=grpc.ssl_channel_credentials())


class TestFarAway:
    def test_a_server_that_is_far_away_is_reached_at_the_first_attempt(self) -> None:
        """The round trips of TCP and TLS add up; the first attempt used to have 0.1 s for them."""
        server = serving()
        host, _, port = server.target.rpartition(":")

        def carry(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while chunk := source.recv(65536):
                    time.sleep(0.15)
                    sink.sendall(chunk)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

        with socket.create_server(("127.0.0.1", 0)) as listener:

            def relay() -> None:
                near, _ = listener.accept()
                with near, socket.create_connection((host, int(port))) as far:
                    back = threading.Thread(target=carry, args=(far, near))
                    back.start()
                    carry(near, far)
                    back.join()

            relaying = threading.Thread(target=relay)
            relaying.start()
            target = f"127.0.0.1:{listener.getsockname()[1]}"
            try:
                with Client(target, unavailable_for=0.0) as client:
                    client.get_gallery("g")
            finally:
                relaying.join()
                server.stop()
        assert len(server.requests) == 1


class TestAddresses:
    def test_of_several_addresses_the_first_that_answers_is_used(self) -> None:
        first, second = serving(), serving()
        try:
            with Client(f"ipv4:{first.target},{second.target}", timeout=30.0) as client:
                client.get_gallery("g")
                assert (len(first.requests), len(second.requests)) == (1, 0)
                first.stop()
                client.get_gallery("g")
                assert (len(first.requests), len(second.requests)) == (1, 1)
        finally:
            second.stop()

    def test_calls_go_round_where_gRPC_is_told_so(self) -> None:
        first, second = serving(), serving()
        options = [("grpc.service_config", ROUND_ROBIN)]
        try:
            with Client(f"ipv4:{first.target},{second.target}", options=options) as client:
                for _ in range(200):
                    client.get_gallery("g")
                    if first.requests and second.requests:
                        break
                assert first.requests
                assert second.requests
        finally:
            first.stop()
            second.stop()

    def test_an_option_of_ones_own_goes_before_ours(self) -> None:
        server = serving()
        options = [("grpc.max_send_message_length", 10)]
        try:
            with Client(server.target, options=options) as client, pytest.raises(Exception) as what:
                client.get_gallery("g" * 100)
        finally:
            server.stop()
        assert "larger than max" in str(what.value)


def test_both_clients_work_where_no_runtime_and_no_torch_is_installed() -> None:
    code = """
import asyncio, sys
for name in ("torch", "onnx", "onnxruntime", "hnswlib", "PIL", "tokenizers", "aiohttp", "pyarrow",
             "prometheus_client", "grpc_reflection", "uvloop", "threadpoolctl", "tqdm"):
    sys.modules[name] = None  # importing it fails
from twinserve.client import AsyncClient, Client
from twinserve.errors import Unavailable

async def call():
    async with AsyncClient("127.0.0.1:1", unavailable_for=0.0) as client:
        await client.embed(["a"])

for one in (lambda: Client("127.0.0.1:1", unavailable_for=0.0).embed(["a"]),
            lambda: asyncio.run(call())):
    try:
        one()
    except Unavailable:
        print("asked")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["asked", "asked"], done.stderr
