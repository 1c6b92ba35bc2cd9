"""What the HTTP port says to names that are not its own, and to what is no HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from twinserve.errors import ConfigError
from twinserve.server import http
from twinserve.server.config import ModelSpec, ServerConfig


def said(*requests: bytes, **settings: Any) -> list[str]:
    """Return what a port answers to requests, each on a connection of its own."""

    async def ask(port: int, request: bytes) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        async with asyncio.timeout(30):
            reply = await reader.read()
        writer.close()
        return reply.decode()

    async def all_of_them() -> list[str]:
        runner, port = await http.start(
            "127.0.0.1", 0, CollectorRegistry(), lambda: True, **settings
        )
        try:
            return [await ask(port, request) for request in requests]
        finally:
            await runner.cleanup()

    return asyncio.run(all_of_them())


def request(host: str, path: str = "/metrics") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


OWN = ("localhost", "LocalHost:9090", "localhost.", "localhost.:80", "127.0.0.1:9090", "127.8.8.8")
OWN += ("[::1]:9090", "[::1]", "proxy.internal", "Proxy.Internal:443")
OTHERS = ("evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example")
OTHERS += ("localhost@evil.example", "10.0.0.7", "0.0.0.0:9090", "::1", "[::2]", "", ":9090", "[")


def test_a_page_whose_name_leads_here_is_refused_and_this_machine_is_not() -> None:
    names = frozenset({"proxy.internal"})
    for host, reply in zip(OWN, said(*map(request, OWN), names=names), strict=True):
        assert reply.startswith("HTTP/1.1 200"), host
    for host, reply in zip(OTHERS, said(*map(request, OTHERS), names=names), strict=True):
        assert reply.startswith(("HTTP/1.1 421", "HTTP/1.0 400")), host
    assert "--http-allowed-host" in said(request(OTHERS[0]), names=names)[0]


def test_probes_and_servers_that_check_no_names_are_asked_by_any() -> None:
    health = request("evil.example", "/healthz")
    assert said(health, names=frozenset())[0].startswith("HTTP/1.1 200")
    assert said(request("evil.example"))[0].startswith("HTTP/1.1 200")


def test_names_are_checked_where_nobody_has_a_key_and_only_this_machine_asks(
    tmp_path: Any,
) -> None:
    def names(**settings: Any) -> frozenset[str] | None:
        models = (ModelSpec(tmp_path / "a.onnx"),)
        return ServerConfig(models, tmp_path / "data", **settings).names_by_http

    assert names() == frozenset()
    assert names(http_allowed_hosts=("Proxy.internal",)) == {"proxy.internal"}
    assert names(keys=tmp_path / "keys.toml") is None
    assert names(host="0.0.0.0", insecure=True) is None
    there = {"host": "0.0.0.0", "insecure": True, "http_allowed_hosts": ("here",)}
    assert names(**there) == {"here"}, "who names hosts means it"
    for wrong in ("https://a.example", "a.example/x", "", "a b"):
        with pytest.raises(ConfigError, match="is no host; give a name or address alone"):
            names(http_allowed_hosts=(wrong,))


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01 hello\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nBad Header: \x01\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    request("localhost", "/nothing"),
    b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nConnection: close\r\n\r\n",
]


def test_errors_that_no_method_finds_are_short_and_tell_nothing_of_the_server() -> None:
    for asked, reply in zip(NO_HTTP, said(*NO_HTTP), strict=True):
        head, _, body = reply.partition("\r\n\r\n")
        assert head.split()[1][0] == "4", asked[:80]
        assert len(body) < 300, asked[:80]
        assert "Server: twinserve\r\n" in head + "\r\n"
        for word in ("aiohttp", "Python", "Traceback", ".py", "<html"):
            assert word not in reply, asked[:80]
