"""The server's settings: one frozen dataclass, read once in `__main__` and passed down."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from twinserve.errors import ConfigError
from twinserve.preprocess import MAX_PIXELS
from twinserve.server.batching.byte_budget import BESIDE_MESSAGE, LEAST_MESSAGES
from twinserve.server.runtime.planning import spinning_asked
from twinserve.server.runtime.providers import memory_size, provider_options
from twinserve.server.watching.logs import FORMATS, LEVELS, checked_level

# A CPU gains nothing from runs above some fifty tokens, and a longer run keeps all others waiting:
# 2,048 tokens of all-MiniLM-L6-v2 take 0.6 s of one core.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16_384

_MOST_MESSAGE_BYTES = (1 << 31) - 1  # gRPC takes its limit as an int
NEEDED = ("model", "data_dir")  # settings without which there is no server
_ORIGIN = re.compile(r"\*|[a-z]+://[^/\s]+")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for."""

    max_items: int = 1024  # inputs, pairs, probes or items of one call
    max_bytes: int = 16 << 20  # of one image or tensor
    max_text_bytes: int = 1 << 16  # of one text in UTF-8, before its tokens are counted
    max_pixels: int = MAX_PIXELS  # of one image, told from its header
    max_message_bytes: int = 64 << 20  # of one gRPC message
    max_bytes_inside: int = 0  # of large messages, over all calls; 0: by the machine's memory
    max_rows: int = 4096  # rows admitted and not yet answered, over all calls
    max_calls: int = 4096  # inside at a time; more are refused before their message is read
    max_top_k: int = 1000
    max_hits: int = 65_536  # probes times top_k of one Search


@dataclass(frozen=True)
class AccessLogSettings:
    """Which calls the access log has a line of."""

    errors: bool = True  # those that fail
    rate: float = 0.0  # share of all calls, 0 to 1
    slow_seconds: float = 10.0  # those that take so long or longer; 0: none for that


@dataclass(frozen=True)
class ModelSpec:
    """A twin file to serve, under the manifest's name unless another is given."""

    path: Path
    name: str = ""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM: the server's certificate with its chain, its key, and who signs clients."""

    certificate: Path
    key: Path
    client_ca: Path | None = None  # where given, clients must show a certificate that it signed

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that there are."""
        mine = (self.certificate, self.key)
        return mine if self.client_ca is None else (*mine, self.client_ca)


@dataclass(frozen=True)
class ServerConfig:
    """Everything that `twinserve serve` can be told."""

    models: tuple[ModelSpec, ...]
    data_dir: Path
    model_dir: Path | None = None
    backup_dir: Path | None = None
    forget_models: bool = False
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 9090
    http_cors: tuple[str, ...] = ()  # origins whose pages may call from browsers
    http_allowed_hosts: tuple[str, ...] = ()  # names that the HTTP port may be asked by
    device: str = "auto"
    insecure: bool = False
    keys: Path | None = None  # the file of keys; None lets everybody in
    metrics_without_key: bool = False
    tls: TlsFiles | None = None
    audit_log: Path | None = None
    max_connections: int = 0  # of each port; 0: by the files that the process may open
    max_batch: int = 64
    max_batch_tokens: int = 0  # of one run of a text twin, padding included; 0: by the device
    ageing: float = 1.0  # seconds after which a waiting call goes before its turn
    runners: int = 0  # runs of one twin at a time; 0: chosen by measuring
    threads: int = 0  # of one twin's session, shared by its runs; 0: chosen by measuring
    spinning: str = "auto"  # auto, off, short, run or on; see planning.Spinning
    strict_device: bool = False  # refuse a twin of which the CPU would run a part
    gpu_memory_limit: int = 0  # bytes for one twin on a graphics card; 0: the whole card
    provider_options: dict[str, str] = field(default_factory=dict)  # passed on to onnxruntime
    grace: float = 30.0  # seconds that running calls have after SIGTERM
    drain_delay: float = 0.0  # seconds between NOT_SERVING and refusing, for load balancers
    exact_below: int | None = None  # live vectors up to which a search scans them all
    scrub_bytes_per_second: int = 8_000_000  # of stored rows read again and verified; 0: never
    log_format: str = "auto"  # see logs.FORMATS
    log_level: str = "info"
    access_log: AccessLogSettings = field(default_factory=AccessLogSettings)
    tracing: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no model to serve; give at least one --model twin.onnx")
        for name, least in (
            ("max_batch", 1),
            ("max_batch_tokens", 0),
            ("max_connections", 0),
            ("runners", 0),
            ("threads", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; "
                    f"it must be at least {least}"
                )
        if not self.ageing > 0:
            raise ConfigError(f"--ageing is {self.ageing}; it must be above 0 seconds")
        spinning_asked(self.spinning)
        for name in ("grpc_port", "http_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; "
                    "a port is 0 (any free one) to 65535"
                )
        for origin in self.http_cors:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--http-cors {origin!r:.80} is no origin as browsers name it; give scheme, "
                    "host and port alone, such as https://app.example.com, or *"
                )
        for name in self.http_allowed_hosts:
            if not _HOST.fullmatch(name):
                raise ConfigError(
                    f"--http-allowed-host {name!r:.80} is no host; give a name or address alone, "
                    "without scheme and port, such as twinserve.internal"
                )
        if self.backup_dir is not None and self.backup_dir.resolve().is_relative_to(
            self.data_dir.resolve()
        ):
            # What lies in the data folder is the server's to tidy up.
            raise ConfigError(
                f"--backup-dir {self.backup_dir} lies in --data-dir {self.data_dir}; give a folder "
                "outside of it, best on another disk"
            )
        if not self.insecure and self.keys is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} is reachable from other machines, and this server asks for no "
                "key: give --keys FILE (`twinserve key new` makes one), or give --insecure to "
                "accept that, or stay on 127.0.0.1"
            )

    @property
    def names_by_http(self) -> frozenset[str] | None:
        """Hosts that requests by HTTP may name beside this machine's own; None: any."""
        # A page that is called by a name of its own here has no key, nor have others a browser.
        if not self.http_allowed_hosts and not (self.keys is None and is_loopback(self.host)):
            return None
        return frozenset(name.lower() for name in self.http_allowed_hosts)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `twinserve serve`."""
    defaults = Limits()
    parser.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]twin.onnx",
        help="a twin to serve, under its own name or NAME; repeat for several",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where galleries are kept")
    parser.add_argument(
        "--model-dir", type=Path, metavar="DIR", help="the only folder that LoadModel may load from"
    )
    parser.add_argument(
        "--backup-dir",
        type=Path,
        metavar="DIR",
        help="the only folder that BackupGalleries makes backups in, outside of --data-dir; "
        "without it there are none",
    )
    parser.add_argument(
        "--forget-models",
        action="store_true",
        help="serve what --model names, and forget what LoadModel loaded and all aliases",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--grpc-port",
        type=int,
        metavar="PORT",
        default=50051,
        help="port of gRPC; 0 picks a free one (%(default)s)",
    )
    parser.add_argument(
        "--http-port",
        type=int,
        metavar="PORT",
        default=9090,
        help="port of /metrics, /healthz, /readyz, and of calls with JSON: /v1/embeddings as "
        "OpenAI's, and every unary RPC; 0 picks a free one (%(default)s)",
    )
    parser.add_argument(
        "--http-cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin whose web pages may call the HTTP port, such as https://app.example.com; "
        "repeat for several; * is any; without it none may",
    )
    parser.add_argument(
        "--http-allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name, beside localhost, by which a server without keys on this machine may be "
        "asked on the HTTP port, such as that of a proxy before it; repeat for several",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda[:N] or tensorrt[:N]; what is asked for is what runs (%(default)s)",
    )
    parser.add_argument(
        "--strict-device",
        action="store_true",
        help="refuse a twin of which the CPU would run a part; without it the log says how much",
    )
    parser.add_argument(
        "--gpu-memory-limit",
        default="",
        metavar="SIZE",
        help="most memory that one twin's runs take on a graphics card, as 512M or 8G",
    )
    parser.add_argument(
        "--provider-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of onnxruntime's CUDA or TensorRT provider; repeat for several",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond this machine although there are no keys",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="let in only who has a key of this file, which `twinserve key` makes; it is read "
        "again when it changes",
    )
    parser.add_argument(
        "--metrics-without-key",
        action="store_true",
        help="answer /metrics also without a key, although there are --keys",
    )
    parser.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="the server's certificate and its chain, in PEM, for both ports; it is read again "
        "when it changes",
    )
    parser.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="the certificate's key, in PEM"
    )
    parser.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="ask clients for a certificate that one of these signed (mutual TLS), in PEM",
    )
    parser.add_argument(
        "--audit-log",
        type=Path,
        metavar="FILE",
        help="write a line of JSON for each call that changes something; it may be rotated",
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        metavar="CONNECTIONS",
        default=0,
        help="connections that each port takes, before more are closed at once; 0: of the files "
        "that the process may open, half for gRPC and a quarter for HTTP (%(default)s)",
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        default=64,
        metavar="ROWS",
        help="most rows of one run (%(default)s)",
    )
    parser.add_argument(
        "--max-batch-tokens",
        type=int,
        default=0,
        metavar="TOKENS",
        help="most tokens of one run of a text twin, padding included; a longer text runs alone; "
        f"0: {CPU_BATCH_TOKENS} on a CPU, {GPU_BATCH_TOKENS} on a GPU",
    )
    parser.add_argument(
        "--ageing",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time after which a waiting call goes before its turn, though of low priority or "
        "beside many with nearer deadlines (%(default)s)",
    )
    parser.add_argument(
        "--runners",
        type=int,
        metavar="N",
        default=0,
        help="runs of one twin at a time; 0: what measured best at its start (%(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        default=0,
        help="threads of one twin, shared by its runs; 0: what measured best (%(default)s)",
    )
    parser.add_argument(
        "--spinning",
        default="auto",
        metavar="auto|off|short|run|on",
        help="whether threads that wait for work burn a processor: auto only where that measured "
        "faster and costs nothing while there is no work (%(default)s)",
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        metavar="ROWS",
        default=defaults.max_rows,
        help="rows admitted and not yet answered, before calls are refused (%(default)s)",
    )
    parser.add_argument(
        "--max-calls",
        type=int,
        metavar="CALLS",
        default=defaults.max_calls,
        help="calls inside, before more are refused without their messages being read "
        "(%(default)s)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_size,
        metavar="SIZE",
        default=defaults.max_bytes_inside,
        help="bytes of the messages of 256K and more inside, before such are refused; 0: a quarter "
        f"of the memory that the machine grants, {LEAST_MESSAGES} times --max-message-bytes at "
        "least (%(default)s)",
    )
    parser.add_argument(
        "--max-message-bytes",
        type=_size,
        metavar="SIZE",
        default=defaults.max_message_bytes,
        help=f"bytes of one gRPC message ({defaults.max_message_bytes >> 20}M)",
    )
    parser.add_argument(
        "--max-items",
        type=int,
        metavar="ITEMS",
        default=defaults.max_items,
        help="inputs, pairs, probes or items of one call (%(default)s)",
    )
    parser.add_argument(
        "--max-input-bytes",
        type=_size,
        metavar="SIZE",
        help=f"bytes of one image or tensor ({defaults.max_bytes >> 20}M, or what a message holds)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="PIXELS",
        default=defaults.max_pixels,
        help="pixels of one image, told from its header (%(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time that running calls have after SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--drain-delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="time between NOT_SERVING and refusing calls after SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--exact-below",
        type=int,
        metavar="ITEMS",
        help="galleries of up to this many vectors are searched exactly, without HNSW",
    )
    parser.add_argument(
        "--scrub-bytes-per-second",
        type=_size,
        metavar="SIZE",
        default=8_000_000,
        help="pace at which everything stored is read again and verified, once a day; 0: never "
        "(%(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default="auto",
        help="of standard error: json has one object a line; auto: human on a terminal, else json "
        "(%(default)s)",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        help=f"what to log at least: {', '.join(LEVELS)} (TWINSERVE_LOG, else info)",
    )
    parser.add_argument(
        "--access-log",
        default="errors",
        metavar="off|errors|RATE",
        help="log calls that fail, and a share of all others: 0.01 is one in a hundred, 1 all "
        "(%(default)s)",
    )
    parser.add_argument(
        "--slow-call-seconds",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="log every call that takes so long or longer; 0: none for that (%(default)s)",
    )
    parser.add_argument(
        "--tracing",
        action="store_true",
        help="send traces as OpenTelemetry's OTEL_... variables say; needs twinserve[tracing]",
    )


def _size(text: str) -> int:
    """Parse bytes such as 16M, for argparse."""
    if text == "0":
        return 0
    try:
        return memory_size(text)
    except ConfigError:
        raise argparse.ArgumentTypeError(
            f"{text} is no size; give bytes, or 512K, 16M or 8G"
        ) from None


def _limits(arguments: argparse.Namespace) -> Limits:
    limits = Limits(
        max_items=arguments.max_items,
        max_bytes=min(Limits().max_bytes, arguments.max_message_bytes)
        if arguments.max_input_bytes is None
        else arguments.max_input_bytes,
        max_pixels=arguments.max_pixels,
        max_message_bytes=arguments.max_message_bytes,
        max_bytes_inside=arguments.max_bytes,
        max_rows=arguments.max_rows,
        max_calls=arguments.max_calls,
    )
    for flag, value in (
        ("--max-calls", limits.max_calls),
        ("--max-items", limits.max_items),
        ("--max-message-bytes", limits.max_message_bytes),
        ("--max-input-bytes", limits.max_bytes),
        ("--max-pixels", limits.max_pixels),
    ):
        if value < 1:
            raise ConfigError(f"{flag} is {value}; it must be at least 1")
    # A Compare has two rows a pair.
    if limits.max_rows < 2 * limits.max_items:
        raise ConfigError(
            f"--max-rows is {limits.max_rows}; it must hold one Compare of {limits.max_items} "
            f"pairs (--max-items), {2 * limits.max_items} rows"
        )
    if limits.max_message_bytes > _MOST_MESSAGE_BYTES:
        raise ConfigError(
            f"--max-message-bytes is {limits.max_message_bytes}; gRPC's own limit is "
            f"{_MOST_MESSAGE_BYTES}"
        )
    if limits.max_bytes > limits.max_message_bytes:
        raise ConfigError(
            f"--max-input-bytes is {limits.max_bytes}; no message holds it, since "
            f"--max-message-bytes is {limits.max_message_bytes}"
        )
    least = limits.max_message_bytes + BESIDE_MESSAGE
    if 0 < limits.max_bytes_inside < least:
        raise ConfigError(
            f"--max-bytes is {limits.max_bytes_inside}; it must hold one message of "
            f"{limits.max_message_bytes} bytes (--max-message-bytes) and {BESIDE_MESSAGE} more"
        )
    return limits


def _access_log(text: str, slow_seconds: float) -> AccessLogSettings:
    if not slow_seconds >= 0:
        raise ConfigError(f"--slow-call-seconds is {slow_seconds}; give 0 for none, or more than 0")
    if text in ("off", "errors"):
        return AccessLogSettings(text == "errors", 0.0, slow_seconds)
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate <= 1:
        raise ConfigError(
            f"--access-log is {text!r:.40}; give off, errors, or the share of calls to log beside "
            "those that fail, such as 0.01, or 1 for all"
        )
    return AccessLogSettings(True, rate, slow_seconds)


def _tls(arguments: argparse.Namespace) -> TlsFiles | None:
    certificate, key, ca = arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca
    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None:
        raise ConfigError(
            "TLS takes --tls-cert and --tls-key together, and --tls-client-ca only with both"
        )
    return TlsFiles(certificate, key, ca)


def from_arguments(arguments: argparse.Namespace) -> ServerConfig:
    """Build the settings from parsed flags.

    Raises:
        ConfigError: a setting outside its range.
    """
    models = []
    for text in arguments.model:
        name, separator, path = text.partition("=")
        named = separator and _MODEL_NAME.fullmatch(name) and not Path(text).exists()
        models.append(ModelSpec(Path(path), name) if named else ModelSpec(Path(text)))
    return ServerConfig(
        models=tuple(models),
        data_dir=arguments.data_dir,
        model_dir=arguments.model_dir,
        backup_dir=arguments.backup_dir,
        forget_models=arguments.forget_models,
        host=arguments.host,
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        http_cors=tuple(arguments.http_cors),
        http_allowed_hosts=tuple(arguments.http_allowed_host),
        device=arguments.device,
        insecure=arguments.insecure,
        keys=arguments.keys,
        metrics_without_key=arguments.metrics_without_key,
        tls=_tls(arguments),
        audit_log=arguments.audit_log,
        max_connections=arguments.max_connections,
        max_batch=arguments.max_batch,
        max_batch_tokens=arguments.max_batch_tokens,
        ageing=arguments.ageing,
        runners=arguments.runners,
        threads=arguments.threads,
        spinning=arguments.spinning,
        strict_device=arguments.strict_device,
        gpu_memory_limit=memory_size(arguments.gpu_memory_limit),
        provider_options=provider_options(arguments.provider_option),
        grace=arguments.grace,
        drain_delay=arguments.drain_delay,
        exact_below=arguments.exact_below,
        scrub_bytes_per_second=arguments.scrub_bytes_per_second,
        log_format=arguments.log_format,
        log_level=checked_level(arguments.log_level or os.environ.get("TWINSERVE_LOG") or "info"),
        access_log=_access_log(arguments.access_log, arguments.slow_call_seconds),
        tracing=arguments.tracing,
        limits=_limits(arguments),
    )
