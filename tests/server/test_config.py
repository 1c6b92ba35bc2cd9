"""Flags of `twinserve serve`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from twinserve.errors import ConfigError
from twinserve.server.config import (
    AccessLogSettings,
    Limits,
    ServerConfig,
    TlsFiles,
    add_arguments,
    from_arguments,
)
from twinserve.server.watching.tracing import tracing


def parsed(*flags: str) -> ServerConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["--model", "a.onnx", "--data-dir", "data", *flags]
    return from_arguments(parser.parse_args(given))


def test_what_a_run_may_hold_is_told_in_rows_and_in_tokens() -> None:
    config = parsed("--max-batch", "8", "--max-batch-tokens", "512")
    assert (config.max_batch, config.max_batch_tokens) == (8, 512)
    assert parsed().max_batch_tokens == 0, "chosen by the device"


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--max-batch", "0", "--max-batch is 0; it must be at least 1"),
        ("--max-batch-tokens", "-1", "--max-batch-tokens is -1; it must be at least 0"),
        ("--runners", "-1", "--runners is -1; it must be at least 0"),
        ("--spinning", "fast", "auto, off, short, run or on"),
        ("--gpu-memory-limit", "8X", "512M"),
        ("--provider-option", "fast", "KEY=VALUE"),
        ("--threads", "-2", "--threads is -2; it must be at least 0"),
        ("--grpc-port", "70000", "--grpc-port is 70000"),
        ("--host", "0.0.0.0", "give --keys FILE .* or give --insecure"),
        ("--max-rows", "100", r"it must hold one Compare of 1024 pairs \(--max-items\), 2048 rows"),
        ("--max-items", "4096", "--max-rows is 4096; it must hold one Compare of 4096 pairs"),
        ("--max-items", "0", "--max-items is 0; it must be at least 1"),
        ("--max-pixels", "0", "--max-pixels is 0; it must be at least 1"),
        ("--max-input-bytes", "65M", "no message holds it"),
        ("--max-message-bytes", "0", "--max-message-bytes is 0; it must be at least 1"),
        ("--max-message-bytes", "2G", "gRPC's own limit"),
        ("--backup-dir", "data/backups", "--backup-dir data/backups lies in --data-dir data"),
        ("--backup-dir", "./data", "give a folder outside of it"),
        ("--max-bytes", "63M", "it must hold one message of 67108864 bytes"),
        ("--http-cors", "https://app.example.com/", "scheme, host and port alone"),
        ("--http-cors", "app.example.com", "scheme, host and port alone"),
    ],
)
def test_a_setting_outside_its_range_is_refused(flag: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parsed(flag, value)


def test_beyond_loopback_a_server_has_keys_or_says_that_it_is_insecure() -> None:
    assert parsed("--host", "0.0.0.0", "--keys", "keys.toml").keys == Path("keys.toml")
    assert parsed("--host", "::", "--insecure").insecure
    assert parsed("--host", "::1").keys is None


def test_tls_takes_both_of_its_files() -> None:
    assert parsed().tls is None
    both = ("--tls-cert", "a.pem", "--tls-key", "a.key")
    assert parsed(*both).tls == TlsFiles(Path("a.pem"), Path("a.key"))
    assert parsed(*both, "--tls-client-ca", "ca.pem").tls.client_ca == Path("ca.pem")
    for flags in (both[:2], both[2:], ("--tls-client-ca", "ca.pem")):
        with pytest.raises(ConfigError, match="--tls-cert and --tls-key together"):
            parsed(*flags)


def test_backups_have_a_folder_of_their_own_or_none() -> None:
    assert parsed().backup_dir is None
    assert parsed("--backup-dir", "data-backups").backup_dir == Path("data-backups")


def test_a_model_is_served_under_the_name_before_the_equals_sign() -> None:
    named, plain = parsed("--model", "b=c.onnx").models[::-1]
    assert (named.name, str(named.path)) == ("b", "c.onnx")
    assert (plain.name, str(plain.path)) == ("", "a.onnx")


def test_the_pace_of_the_scrub_is_a_size_and_nothing_turns_it_off() -> None:
    assert parsed().scrub_bytes_per_second == 8_000_000
    assert parsed("--scrub-bytes-per-second", "1M").scrub_bytes_per_second == 1 << 20
    assert parsed("--scrub-bytes-per-second", "0").scrub_bytes_per_second == 0


def test_limits_of_calls_inputs_and_messages_are_told_in_sizes() -> None:
    flags = ("--max-bytes", "1G", "--max-message-bytes", "8M", "--max-input-bytes", "512K")
    limits = parsed(*flags, "--max-items", "16", "--max-pixels", "1000").limits
    assert (limits.max_bytes_inside, limits.max_message_bytes) == (1 << 30, 8 << 20)
    assert (limits.max_bytes, limits.max_items, limits.max_pixels) == (512 << 10, 16, 1000)
    assert parsed().limits == Limits()
    assert parsed("--max-message-bytes", "8M").limits.max_bytes == 8 << 20, "no input is larger"
    assert parsed("--max-bytes", "0").limits.max_bytes_inside == 0, "by the machine"


@pytest.mark.parametrize("flag", ["--max-bytes", "--max-message-bytes", "--max-input-bytes"])
def test_what_is_no_size_is_wrong_usage(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(flag, "8X")
    assert f"{flag}: 8X is no size; give bytes, or 512K, 16M or 8G" in capsys.readouterr().err


def test_the_level_of_the_log_is_the_flags_then_the_variables_then_info(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TWINSERVE_LOG", raising=False)
    assert parsed().log_level == "info"
    monkeypatch.setenv("TWINSERVE_LOG", "WARNING")
    assert parsed().log_level == "warning"
    assert parsed("--log-level", "debug").log_level == "debug"
    monkeypatch.setenv("TWINSERVE_LOG", "loud")
    with pytest.raises(ConfigError, match="the log level is 'loud'"):
        parsed()


def test_what_is_watched_is_told_by_flags() -> None:
    config = parsed()
    assert (config.log_format, config.tracing) == ("auto", False)
    assert config.access_log == AccessLogSettings(errors=True, rate=0.0, slow_seconds=10.0)
    config = parsed("--access-log", "0.5", "--slow-call-seconds", "2", "--log-format", "human")
    assert config.access_log == AccessLogSettings(errors=True, rate=0.5, slow_seconds=2.0)
    assert config.log_format == "human"


def test_tracing_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"pip install 'twinserve\[tracing\]'"):
        tracing()
