"""Wires the server and runs it: settings in, exit code out.

Order of starting: data folder, device, twins (loaded and warmed; those that are remembered too),
galleries, HTTP, gRPC, SERVING. Order of stopping, on SIGTERM or SIGINT: NOT_SERVING, a pause for
load balancers, new calls refused and running ones finished within the grace period, galleries
closed, exit 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import threadpoolctl
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from twinserve import settings
from twinserve.errors import ConfigError, InvalidInput, TwinserveError
from twinserve.oip import inference_pb2, inference_pb2_grpc
from twinserve.server import config as configs
from twinserve.server import gateway, http, service_manager
from twinserve.server.afterwards import Afterwards
from twinserve.server.batching.admission import Admission
from twinserve.server.batching.byte_budget import ByteBudget, fitting
from twinserve.server.config import ServerConfig
from twinserve.server.front import Front
from twinserve.server.front.shares import Shares
from twinserve.server.gallery import GalleryLimits, backup
from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gate import Gate
from twinserve.server.models.changes import ModelChanges
from twinserve.server.models.holding import Models
from twinserve.server.models.loading import Loader
from twinserve.server.models.records import ModelRecords
from twinserve.server.models.table import Bound
from twinserve.server.runtime import machine
from twinserve.server.security import audit, key_file, watched_files
from twinserve.server.security.access import Door, OpenDoor
from twinserve.server.security.connections import allow_files, grpc_options, most_connections
from twinserve.server.security.tls import Tls
from twinserve.server.security.watched_files import WatchedFiles
from twinserve.server.services.calls import priority_in
from twinserve.server.services.embedding import EmbeddingService
from twinserve.server.services.gallery import GalleryService
from twinserve.server.services.inference import InferenceService
from twinserve.server.services.large_messages import LargeMessages
from twinserve.server.services.model import ModelService
from twinserve.server.services.refusals import admission, over_share, refusals
from twinserve.server.storage.data_folder import DataFolder
from twinserve.server.watching import gauges, logs
from twinserve.server.watching.access_log import AccessLog
from twinserve.server.watching.gallery_metrics import GalleryMetrics
from twinserve.server.watching.metrics import Metrics
from twinserve.server.watching.tracing import tracing
from twinserve.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    gallery_service_pb2,
    gallery_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

log = logging.getLogger("twinserve.server")

LAST_BYTES = 1.0  # seconds
# How long a thread keeps the interpreter that another waits for. Python's own 5 ms, several times
# over, is what a call waited for while a thousand items were enrolled beside it.
SWITCH_SECONDS = 0.0005

_SERVICES = (
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name,
    gallery_service_pb2.DESCRIPTOR.services_by_name["GalleryService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


async def serve(config: ServerConfig) -> None:
    """Serve until a signal stops it.

    Raises:
        TwinserveError: a twin, device or folder that cannot be used; nothing was served then.
        OSError: a port that is taken.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    metrics, gate = Metrics(), Gate()
    door: Door | None = None  # open to all
    files: list[WatchedFiles] = []
    if config.keys is not None:
        door, keys = key_file.open_door(config.keys)
        files.append(keys)
    tls = None
    if config.tls is not None:
        tls = Tls(config.tls)
        files.append(tls.watched)
    elif not configs.is_loopback(config.host):
        log.warning(
            "%s: keys and inputs travel in plain text, since there is no TLS; give --tls-cert and "
            "--tls-key, or let nobody but a proxy with TLS reach these ports",
            config.host,
        )
    allow_files()
    most = most_connections(config.max_connections)
    count = machine.processors().usable
    metrics.watches.add(AccessLog(config.access_log))
    async with contextlib.AsyncExitStack() as stack:
        if config.tracing:
            traces = tracing()
            metrics.watches.add(traces)
            stack.push_async_callback(asyncio.to_thread, traces.close)
        stack.enter_context(audit.written_to(config.audit_log))
        workers = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="prepare"))
        readers = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="read"))
        models, afterwards = Models(), Afterwards()
        admission = Admission(
            config.limits.max_rows,
            lambda: max((engine.batcher.seconds_per_row for engine in models), default=0.001),
        )
        budget = ByteBudget(
            config.limits.max_bytes_inside
            or fitting(machine.memory().granted, config.limits.max_message_bytes)
        )
        folder = stack.enter_context(contextlib.closing(DataFolder(config.data_dir)))
        limits = GalleryLimits()
        if config.exact_below is not None:
            limits = replace(limits, exact_scan_below=config.exact_below)
        limits = replace(limits, scrub_bytes_per_second=config.scrub_bytes_per_second)
        galleries = Galleries(folder, limits, GalleryMetrics(metrics))
        if config.backup_dir is not None:
            await asyncio.to_thread(_sweep_backups, config.backup_dir)
        loader = Loader(config, metrics, admission, workers, count, afterwards)
        changes = ModelChanges(
            models,
            loader.load,
            ModelRecords(folder.catalog),
            lambda: [Bound(one.name, one.model, one.space_id) for one in galleries.settings()],
            config.model_dir,
            metrics.forget,
            read=loader.read,
        )
        stack.push_async_callback(asyncio.to_thread, changes.close)
        loads = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="load"))
        # Before the galleries: their background work would disturb what is measured of the twins.
        await asyncio.to_thread(changes.start, config.models, forget=config.forget_models)
        await asyncio.to_thread(galleries.open)
        stack.push_async_callback(asyncio.to_thread, galleries.close)
        gauges.watch_models(metrics, models)
        gauges.watch_shadows(metrics, changes.shadows)
        gauges.watch_admission(metrics, admission, gate)
        gauges.watch_bytes(metrics, budget)
        gauges.watch_galleries(metrics, galleries)

        share = max(1, config.limits.max_calls // 2)
        shares = Shares(share, over_share(metrics, share))
        server = _front(
            config, metrics, budget, readers, models, afterwards, door, most.grpc, shares
        )
        checks = health.aio.HealthServicer()
        names = ("", *_SERVICES, _INFERENCE)
        for name in names:
            await checks.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        embedding_service = EmbeddingService(models, metrics, gate, config.limits)
        gallery_service = GalleryService(
            galleries,
            models,
            metrics,
            gate,
            config.limits,
            admission,
            readers,
            config.backup_dir,
            afterwards,
        )
        model_service = ModelService(models, changes, metrics, gate, loads, readers)
        embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(embedding_service, server)
        gallery_service_pb2_grpc.add_GalleryServiceServicer_to_server(gallery_service, server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(model_service, server)
        serving = False
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceService(models, metrics, gate, config.limits, lambda: serving), server
        )
        reflection.enable_server_reflection(
            (*_SERVICES, _INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        calls = gateway.Calls(
            server,
            door or OpenDoor(),
            LargeMessages(budget, metrics),
            config.limits,
            refusals(metrics, config.limits.max_calls).overloaded,
            metrics,
            readers,
            shares,
        )
        methods = gateway.Methods(
            dict(zip(_SERVICES, (embedding_service, gallery_service, model_service), strict=True))
        )
        web, http_port = await http.start(
            config.host,
            config.http_port,
            metrics.registry,
            lambda: serving,
            routes=[
                *gateway.Connect(calls, methods).routes(),
                *gateway.OpenAI(calls, methods).routes(),
            ],
            origins=config.http_cors,
            names=config.names_by_http,
            door=None if config.metrics_without_key else door,
            tls=tls,
            connections=most.http,
        )
        stack.push_async_callback(web.cleanup)
        grpc_port = _bind(server, config, tls)
        machine.keep_for_good()
        machine.give_back_memory()  # what reading galleries and warming up left
        if stopping.is_set():
            log.info("stopped before serving")
            return
        if files:
            watching = loop.create_task(watched_files.watch(files))
            stack.callback(watching.cancel)
            loop.add_signal_handler(signal.SIGHUP, watched_files.check_all, files)
        await server.start()
        for name in names:
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        serving = True
        print(
            f"twinserve SERVING grpc={config.host}:{grpc_port} http={config.host}:{http_port}",
            flush=True,
        )
        service_manager.tell(service_manager.READY)
        await stopping.wait()
        service_manager.tell(service_manager.STOPPING)
        log.info("stopping: NOT_SERVING, then %.1f s of grace", config.grace)
        serving = False
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(config.drain_delay)
        left = await gate.close(config.grace)
        if left:
            log.warning("%d calls are still running after the grace period and are ended", left)
        # The calls are done; what is left are their last bytes, and watchers of health.
        await server.stop(LAST_BYTES)
    log.info("stopped")


def _front(
    config: ServerConfig,
    metrics: Metrics,
    budget: ByteBudget,
    threads: ThreadPoolExecutor,
    models: Models,
    afterwards: Afterwards,
    door: Door | None,
    connections: int,
    shares: Shares,
) -> Front:
    return Front(
        [
            ("grpc.max_receive_message_length", config.limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would share its connections without a word.
            ("grpc.so_reuseport", 0),
            # Beyond a thousand unread calls the core ends some by chance, as CANCELLED and unseen;
            # the front reads them all, and says which limit was met.
            ("grpc.server.max_pending_requests", 1_000_000),
            ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            *grpc_options(connections),
        ],
        threads,
        config.limits.max_calls,
        refusals(metrics, config.limits.max_calls),
        # Whatever model a call names, it waits for that one at least.
        behind=lambda coming: min(
            (engine.batcher.behind(coming) for engine in models), default=0.0
        ),
        behind_of=functools.partial(_behind_of, models),
        afterwards=afterwards,
        budget=LargeMessages(budget, metrics),
        admit=None if door is None else admission(door, metrics),
        shares=shares,
    )


def _sweep_backups(folder: Path) -> None:
    """Remove what a backup left that was cut off, and find out now whether the folder is one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        backup.sweep(folder)
    except OSError as error:
        raise ConfigError(
            f"--backup-dir {folder} cannot be used ({error.strerror}); give a folder that this "
            "user may write, or a path where one can be made"
        ) from error


def _behind_of(
    models: Models, client: str, metadata: Iterable[tuple[str, str | bytes]], coming: int
) -> float:
    """Return the seconds that a call waits at least for its turn, whatever model it names."""
    try:
        priority = priority_in(metadata)
    except InvalidInput:
        return 0.0  # it is read, and told what is wrong with it
    return min(
        (engine.batcher.behind_of(client, priority, coming) for engine in models), default=0.0
    )


def _bind(server: Front, config: ServerConfig, tls: Tls | None) -> int:
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        address = f"{host}:{config.grpc_port}"
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.grpc())
    except RuntimeError as error:
        raise ConfigError(
            f"port {config.grpc_port} of {config.host} cannot be bound: it is taken or not "
            "allowed; give another with --grpc-port, or 0 for any free one"
        ) from error


def run(config: ServerConfig) -> int:
    """Serve until stopped; return the exit code."""
    logs.set_up(config.log_format, config.log_level)
    # Searches run side by side, each on a thread; BLAS threads of its own make one wait for all the
    # others: up to fifty times as long, measured where both processors were busy.
    threadpoolctl.threadpool_limits(1, user_api="blas")
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config))
    except (TwinserveError, OSError) as error:
        print(f"twinserve: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags of `twinserve serve` and run it."""
    parser = argparse.ArgumentParser(prog="twinserve serve", description=__doc__)
    configs.add_arguments(parser)
    settings.add_arguments(parser)
    try:
        parsed = settings.parse(parser, arguments, needed=configs.NEEDED)
        for warning in parsed.settings_warnings:
            print(f"twinserve: {warning}", file=sys.stderr)
        config = configs.from_arguments(parsed)
    except ConfigError as error:
        print(f"twinserve: {error}", file=sys.stderr)
        return 2
    if parsed.print_config:
        print(settings.as_toml(parsed.settings), end="")
        return 0
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
