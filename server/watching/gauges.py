"""What is so at the moment: queues, models and galleries, asked at each scrape.

The reads run in the scrape's thread, never on the loop and never in a runner's. Labels come from
what is served right now, so those of an unloaded model are gone with it. Galleries are added up:
clients make as many as they like, and a label each would grow without bound. Where a sum would hide
the one that is in trouble, the worst is exported (recall), or how many are (damage); the log names
them.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping

from twinserve.server.batching.admission import Admission
from twinserve.server.batching.byte_budget import ByteBudget
from twinserve.server.engine import Engine
from twinserve.server.gallery.galleries import Galleries
from twinserve.server.gate import Gate
from twinserve.server.models.shadow import Report, Shadow
from twinserve.server.watching.metrics import Metrics, Samples


def watch_models(metrics: Metrics, models: Iterable[Engine]) -> None:
    """Export what is loaded, and what waits for it."""

    def by_name(
        read: Callable[[Engine], float],
        together: Callable[[float, float], float] = operator.add,
    ) -> Callable[[], Samples]:
        # Versions of one name share its queue's labels.
        def samples() -> Samples:
            values: dict[str, float] = {}
            for engine in models:
                values[engine.name] = together(values.get(engine.name, 0.0), read(engine))
            return [((name,), value) for name, value in values.items()]

        return samples

    metrics.watch_each(
        "model_info",
        "1 for each loaded model, with what really runs it: the precision of its file, and the "
        "execution provider that the session has.",
        ("model", "precision", "provider"),
        lambda: [
            ((engine.version, engine.manifest.precision, engine.runner.device.provider), 1.0)
            for engine in models
        ],
    )
    metrics.watch_each(
        "runners",
        "Runs of a model that may be under way at a time, with the threads that they share and "
        "whether idle ones spin, as chosen when it was loaded.",
        ("model", "device", "threads", "spinning"),
        lambda: [
            (
                (
                    engine.version,
                    engine.runner.device.label,
                    str(engine.runner.plan.threads),
                    engine.runner.plan.spinning.value,
                ),
                float(engine.runner.plan.runners),
            )
            for engine in models
        ],
    )
    metrics.watch_each(
        "device_node_share",
        "Share of a model's nodes that its device runs; below 1 the CPU runs the rest.",
        ("model", "device"),
        lambda: [
            ((engine.version, engine.runner.device.label), engine.runner.device_share)
            for engine in models
        ],
    )
    metrics.watch_each(
        "cuda_graph_shapes",
        "Shapes of batches that a graphics card replays as CUDA graphs; 0 where it cannot, for a "
        "reason that the log names.",
        ("model",),
        lambda: [
            ((engine.version,), float(engine.runner.cuda_graph_shapes))
            for engine in models
            if engine.runner.device.kind == "cuda"
        ],
    )
    metrics.watch_each(
        "queue_rows",
        "Rows that wait for a runner. Where it stays above 0, arrivals outrun the model.",
        ("model",),
        by_name(lambda engine: engine.batcher.waiting),
    )
    metrics.watch_each(
        "queue_tokens",
        "Tokens of texts that wait for a runner, without padding; 0 for other inputs.",
        ("model",),
        by_name(lambda engine: engine.batcher.queue()[0]),
    )
    metrics.watch_each(
        "queue_oldest_seconds",
        "Seconds that the oldest waiting job has waited; 0 where none does. Where it nears "
        "--ageing, calls of low priority or of busy clients starve.",
        ("model",),
        by_name(lambda engine: engine.batcher.queue()[1], max),
    )


def watch_shadows(metrics: Metrics, shadows: Callable[[], Mapping[str, Shadow]]) -> None:
    """Export how candidates fare on live calls, while they are tried."""

    def each(read: Callable[[Report], float | None]) -> Callable[[], Samples]:
        def samples() -> Samples:
            reports = [shadow.report() for shadow in shadows().values()]
            values = [((one.candidate, one.model), read(one)) for one in reports]
            return [(labels, value) for labels, value in values if value is not None]

        return samples

    for name, text, read in (
        ("calls", "Calls that the candidate answered too.", lambda one: one.calls),
        ("skipped_calls", "Calls drawn for it while it was behind.", lambda one: one.skipped),
        ("failed_items", "Items that the model embedded and the candidate did not.",
         lambda one: one.failed),
        ("mean_drift", "Mean cosine distance between both embeddings of an item; absent where the "
         "spaces differ.", lambda one: one.mean_drift),
        ("worst_drift", "Largest of those distances.", lambda one: one.worst_drift),
        ("pairs", "Pairs of items decided by both.", lambda one: one.pairs),
        ("pairs_decided_otherwise", "Pairs where one said match and the other did not.",
         lambda one: one.pairs_decided_otherwise),
        ("model_p99_seconds", "Of the last mirrored calls, in the model.",
         lambda one: one.model_p99),
        ("candidate_p99_seconds", "Of the same calls, in the candidate.",
         lambda one: one.candidate_p99),
    ):  # fmt: skip
        metrics.watch_each(
            f"shadow_{name}", f"Shadow run: {text}", ("candidate", "model"), each(read)
        )


def watch_admission(metrics: Metrics, admission: Admission, gate: Gate) -> None:
    """Export how full the server is."""
    metrics.watch(
        "admitted_rows",
        "Rows admitted and not yet answered, over all models; of texts one for every 64 tokens. "
        "Near the limit, calls are refused with QUEUE_FULL or CLIENT_OVER_SHARE.",
        lambda: admission.rows,
    )
    metrics.watch(
        "admitted_rows_limit", "The limit of admitted rows, --max-rows.", lambda: admission.max_rows
    )
    metrics.watch(
        "calls_running",
        "Calls that are inside the server, in whatever state; those that do no work, such as "
        "health checks, are not counted.",
        lambda: gate.inside,
    )


def watch_bytes(metrics: Metrics, budget: ByteBudget) -> None:
    """Export how much of the room for large messages is taken."""
    metrics.watch(
        "message_bytes",
        "Bytes of messages inside, each until its call has ended, or the stream has answered it; "
        "less than 256 KiB of a call is not counted. Near the limit, large ones are refused with "
        "QUEUE_FULL or CLIENT_OVER_SHARE; above half of it, streams are not read.",
        lambda: budget.bytes,
    )
    metrics.watch(
        "message_bytes_limit",
        "The limit of message bytes, --max-bytes or what it chose.",
        lambda: budget.max_bytes,
    )


def watch_galleries(metrics: Metrics, galleries: Galleries) -> None:
    """Export how much the galleries hold, together, and how they fare."""

    def totals() -> list[Samples]:
        statuses = galleries.list("", 1_000_000)  # one look for all of these
        columns = (
            len(statuses),
            sum(status.item_count for status in statuses),
            sum(status.index_debt for status in statuses),
            sum(status.segment_count for status in statuses),
            sum(status.dead_count for status in statuses),
            sum(status.memory_bytes for status in statuses),
        )
        return [[((), float(value))] for value in columns]

    metrics.watch_together(
        (
            ("galleries", "Galleries on this server.", ()),
            ("gallery_items", "Live items of all galleries.", ()),
            (
                "gallery_index_debt",
                "Rows not yet in an HNSW index, of all galleries; searches scan them. Where it "
                "only grows, enrolments outrun the index: enrol more slowly.",
                (),
            ),
            (
                "gallery_segments",
                "Segments of all galleries; a search goes through each of its gallery's. Some "
                "seven a gallery are usual: where there are many more, merges do not keep up.",
                (),
            ),
            (
                "gallery_dead_vectors",
                "Vectors held by segments of all galleries and by no item any more, until a merge "
                "drops them. Above a third of the items, searches pay for them: removals outrun "
                "the merges.",
                (),
            ),
            (
                "gallery_memory_bytes",
                "Bytes that rows, vectors and graphs of all galleries take in memory, about; "
                "vectors mapped from files are not counted. Near the machine's memory: delete "
                "items, or move galleries to another server.",
                (),
            ),
        ),
        totals,
    )
    metrics.watch_each(
        "gallery_disk_bytes",
        "Bytes of the galleries' files, by kind: store (the truth), log (committed and not in the "
        "store yet), index (can be made anew), broken (copies of damaged stores; remove them once "
        "looked at). A log that only grows: something keeps a database open and reads for long.",
        ("kind",),
        lambda: [
            ((kind,), float(size))
            for kind, size in dataclasses.asdict(galleries.disk_usage()).items()
        ],
    )
    metrics.watch(
        "gallery_writer_rows",
        "Rows of enrolments and removals that wait for the writing thread, over all galleries. At "
        "200,000 more are refused with QUEUE_FULL: the disk is slower than what is enrolled.",
        lambda: float(galleries.waiting_rows),
    )
    metrics.watch_each(
        "gallery_recall_lowest",
        "Share of true nearest neighbours that the last 50 recomputed searches of a gallery had "
        "found, of the model's gallery with the lowest; absent before 10. Below 0.9 the log names "
        "the gallery: raise ef of its searches, or make it anew with larger hnsw.ef and m.",
        ("model",),
        lambda: [((model,), recall) for model, recall in galleries.lowest_recall().items()],
    )
    metrics.watch(
        "galleries_damaged",
        "Galleries whose store is damaged: refused since the start, or found by the scrub and "
        "taking no more changes. Above 0 the log names them: put back a backup, or delete them.",
        lambda: float(galleries.damaged),
    )
    metrics.watch(
        "gallery_last_scrub_timestamp_seconds",
        "Unix time at which all that is stored had last been read again and verified; 0 before the "
        "first time. Older than two days: it is off, or raise --scrub-bytes-per-second.",
        lambda: galleries.last_scrub,
    )
    metrics.watch(
        "gallery_measuring_seconds",
        "Seconds spent in the background on measuring how strangers fare in large galleries.",
        lambda: galleries.measuring_seconds,
    )
    metrics.watch(
        "gallery_durability_lag_seconds",
        "Age of the oldest enrolment or removal that is not yet committed to disk, over all "
        "galleries; 0 where none waits. Nothing is acknowledged before: where it grows, the disk "
        "is slower than what is enrolled.",
        lambda: galleries.durability_lag,
    )
