"""TLS and mutual TLS of both ports, and certificates that change while the server serves."""

from __future__ import annotations

import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests import twins
from tests.conftest import RunningServer, start
from tests.server.security.certificates import Certificates
from twinserve.cli.__main__ import main
from twinserve.client import Client
from twinserve.errors import ConfigError, Unauthenticated, Unavailable
from twinserve.server.config import TlsFiles
from twinserve.server.security import keys
from twinserve.server.security.access import Role
from twinserve.server.security.tls import Tls

PIXELS, _ = twins.classes_of_pixels(2, 2)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    for ca in ("ca", "other-ca"):
        made.ca(ca)
    for name, ca in (("first", "ca"), ("second", "other-ca"), ("client", "ca")):
        made.sign(name, ca)
    made.sign("stranger", "other-ca")
    return made


@dataclass
class Secured:
    """A server with mutual TLS and keys."""

    server: RunningServer
    certificates: Certificates
    key: str

    def embed(self, ca: str = "ca", client: str = "client", key: str | None = "") -> int:
        """Return how many vectors a client with these gets."""
        with Client(
            f"localhost:{self.server.grpc_port}",
            api_key=self.key if key == "" else key,
            credentials=self.certificates.channel_credentials(ca, client),
            unavailable_for=0.0,
            timeout=30,
        ) as one:
            return len(one.embed([PIXELS[0]]).vectors)

    def get(self, path: str, ca: str = "ca", client: str = "") -> int:
        request = urllib.request.Request(
            f"https://localhost:{self.server.http_port}{path}",
            headers={"Authorization": f"Bearer {self.key}"},
        )
        try:
            context = self.certificates.context(ca, client)
            with urllib.request.urlopen(request, context=context) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)

    def reload(self) -> str:
        """Have the certificates read again now; return what the server logs of it."""
        seen = len(self.server.errors)
        self.server.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for line in self.server.errors[seen:]:
                if "certificate" in line:
                    return line
            time.sleep(0.01)
        raise AssertionError("the server did not read its certificates again")


@pytest.fixture(scope="module")
def secured(
    twin_file: Path, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    key = keys.make(folder / "keys.toml", "ops", Role.ADMIN)
    certificates.put("first", "server")
    certificates.put("ca", "clients")
    files = ("--tls-cert", certificates.certificate("server"), "--tls-key")
    ca = ("--tls-client-ca", certificates.certificate("clients"))
    server = start(
        *("--model", twin_file, "--data-dir", folder / "data", "--keys", folder / "keys.toml"),
        *(*files, certificates.key("server"), *ca, "--runners", "1", "--threads", "1"),
    )
    yield Secured(server, certificates, key)
    assert server.stop() == 0


def test_a_client_with_a_certificate_and_a_key_is_served(secured: Secured) -> None:
    assert secured.embed() == 1
    assert secured.get("/metrics", client="client") == 200


def test_a_certificate_is_no_key(secured: Secured) -> None:
    with pytest.raises(Unauthenticated):
        secured.embed(key=None)


@pytest.mark.parametrize("client", ["", "stranger"])
def test_without_a_certificate_of_its_ca_nothing_is_answered(secured: Secured, client: str) -> None:
    with pytest.raises(Unavailable):
        secured.embed(client=client)


def test_a_client_refuses_a_server_that_its_ca_did_not_sign(secured: Secured) -> None:
    with pytest.raises(Unavailable):
        secured.embed(ca="other-ca")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        secured.get("/healthz", ca="other-ca")


def test_who_speaks_plain_text_is_not_answered(secured: Secured) -> None:
    with (
        Client(secured.server.target, api_key=secured.key, unavailable_for=0.0) as client,
        pytest.raises(Unavailable),
    ):
        client.embed([PIXELS[0]])
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{secured.server.http_port}/healthz")


def test_only_probes_of_health_come_without_a_certificate_over_http(secured: Secured) -> None:
    assert secured.get("/healthz") == 200
    assert secured.get("/readyz") == 200
    assert secured.get("/metrics") == 403
    assert secured.get("/nothing") == 403
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        secured.get("/healthz", client="stranger")


def test_certificates_change_without_a_restart_and_bad_ones_change_nothing(
    secured: Secured,
) -> None:
    certificates = secured.certificates
    target = f"localhost:{secured.server.grpc_port}"
    credentials = certificates.channel_credentials("ca", "client")
    with Client(target, api_key=secured.key, credentials=credentials, timeout=30) as open_since:
        open_since.embed([PIXELS[0]])
        # The certificate is there before its key, as it is while somebody copies.
        certificates.certificate("server").write_bytes(
            certificates.certificate("second").read_bytes()
        )
        assert "the certificate that was read before" in secured.reload()
        assert secured.embed() == 1
        assert secured.get("/healthz") == 200

        certificates.put("second", "server")
        assert "as it is now" in secured.reload()
        assert secured.embed(ca="other-ca") == 1
        assert secured.get("/healthz", ca="other-ca") == 200
        with pytest.raises(Unavailable):
            secured.embed()
        with pytest.raises(urllib.error.URLError):
            secured.get("/healthz")
        open_since.embed([PIXELS[0]])  # what is open stays open

        # Who signs clients changes too.
        certificates.put("other-ca", "clients")
        secured.reload()
        assert secured.embed(ca="other-ca", client="stranger") == 1
        assert secured.get("/metrics", ca="other-ca", client="stranger") == 200
        with pytest.raises(Unavailable):
            secured.embed(ca="other-ca")
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            secured.get("/metrics", ca="other-ca", client="client")

        certificates.certificate("clients").unlink()
        assert "the certificate that was read before" in secured.reload()
        assert secured.embed(ca="other-ca", client="stranger") == 1
    certificates.put("first", "server")
    certificates.put("ca", "clients")
    secured.reload()
    assert secured.embed() == 1


def test_plain_tls_asks_clients_for_nothing(
    certificates: Certificates, run_tls: Callable[[TlsFiles], int]
) -> None:
    port = run_tls(TlsFiles(certificates.certificate("first"), certificates.key("first")))
    credentials = certificates.channel_credentials("ca")
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        assert channel.unary_unary("/s/Echo")(b"x", timeout=10) == b"x"


@pytest.fixture
def run_tls() -> Iterator[Callable[[TlsFiles], int]]:
    """Start an echo with TLS in this process; returns its port."""
    from concurrent.futures import ThreadPoolExecutor

    servers = []

    def begin(files: TlsFiles) -> int:
        server = grpc.server(ThreadPoolExecutor(1))
        echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
        server.add_registered_method_handlers("s", {"Echo": echo})
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("s", {"Echo": echo}),)
        )
        port = server.add_secure_port("localhost:0", Tls(files).grpc())
        server.start()
        servers.append(server)
        return int(port)

    yield begin
    for server in servers:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("certificate", "key", "ca", "said"),
    [
        ("nothing.pem", "first.key", None, "nothing.pem and .*No such file"),
        ("first.pem", "second.key", None, "KEY_VALUES_MISMATCH"),
        ("first.key", "first.key", None, "files in PEM"),
        ("first.pem", "locked.key", None, "the key is encrypted"),
        ("first.pem", "first.key", "first.key", "--tls-client-ca"),
    ],
)
def test_files_that_cannot_be_used_stop_the_start(
    certificates: Certificates, certificate: str, key: str, ca: str | None, said: str
) -> None:
    folder = certificates.folder
    if key == "locked.key":
        lock = ("-in", folder / "first.key", "-out", folder / key, "-passout", "pass:x")
        subprocess.run(["openssl", "ec", "-aes256", *lock], check=True, capture_output=True)
    files = TlsFiles(folder / certificate, folder / key, None if ca is None else folder / ca)
    with pytest.raises(ConfigError, match=said):
        Tls(files)


def test_the_command_line_connects_with_tls(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWINSERVE_API_KEY", secured.key)
    certificates = secured.certificates
    target = ["--target", f"localhost:{secured.server.grpc_port}", "--timeout", "5"]
    ca = ["--tls-ca", str(certificates.certificate("ca"))]
    cert = ["--tls-cert", str(certificates.certificate("client"))]
    key = ["--tls-key", str(certificates.key("client"))]
    assert main(["gallery", "list", *target, *ca, *cert, *key]) == 0
    monkeypatch.setenv("TWINSERVE_CLIENT_TLS_CA", ca[1])
    assert main(["gallery", "list", *target, *cert, *key]) == 0
    assert main(["gallery", "list", *target, *cert]) == 2
    assert "takes cert and key together" in capsys.readouterr().err
    assert main(["gallery", "list", *target, *cert, "--tls-key", "nothing.key"]) == 2
    assert "nothing.key" in capsys.readouterr().err
