"""How long reads of a day, a week and a year take, how much memory they need, and how large a pane is.

A version with 20 features serves 20,000 predictions an hour, half of them labelled, over four partitions. Its
panes are counted by the monitor's own code from random rows and stored for a year, as far as the reads need
them: all days, the hours of the last days and of the edges, and the minutes of the hours at the edges. The
methods of the API are called in this process, with the event loop and the collector as the service has
them; the ranges begin and end within an hour. The same call is repeated, as a console does. "After a change"
means that the newest panes were written before each call, as under traffic, so that nothing that was computed
from them can be used again.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import numpy as np
import uvloop

from bench import measure
from bench.common.cpu import peak_bytes, reset_peak, resident_bytes
from bench.monitor.consumer_process import PANE_US, OneReference
from bench.monitor.stream_events import FEATURES, HOUR_US, MODEL, PARTITIONS, VERSION, Stream, columns_of
from bench.monitor.throughput import stack
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, transaction
from flywheel_local.backends import Backends
from flywheel_monitor.api.servicer import MonitorServicer
from flywheel_monitor.ingest.batches import rows_of
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.server import MIGRATIONS
from flywheel_monitor.store.postgres.pool import monitor_pool
from flywheel_monitor.store.postgres.records import PostgresStore
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.panes import PackedPane, PaneAccumulator
from flywheel_monitor.windows.rows import LabelledRows
from flywheel_protos.monitor.v1 import monitor_pb2 as pb

DAY_US = 24 * HOUR_US
ROWS_PER_HOUR = 20_000
END_US = 1_763_000_000_000_000 // DAY_US * DAY_US + 13 * HOUR_US + 37 * 60_000_000
RANGES = {"a day": 1, "a week": 7, "a year": 365}
READS = ("GetDriftReport", "GetPerformance", "CompareVariants")
CALLS = 200
CHANGES = 30
ROLLOUT = f"{MODEL}/rollouts/1"
WIDTHS = {"minute": PANE_US, "hour": HOUR_US, "day": DAY_US}
_WRITE = """
INSERT INTO pane (variant_id, partition, segment, width_us, start_us, predictions, counts, sums)
SELECT $1, p, '', $2, s, $3, $4, $5 FROM unnest($6::bigint[]) AS s, generate_series(0, $7) AS p
"""
_CHANGE = "UPDATE pane SET predictions = predictions WHERE start_us + width_us > $1"


def run(only: str) -> Iterable[measure.Row]:
    if only and not any(only in f"{read} of {name}" for read in READS for name in RANGES):
        return
    with stack("monitor-reads", {"postgres"}) as backends:
        yield from uvloop.run(_measured(backends, only))


async def _measured(backends: Backends, only: str) -> list[measure.Row]:
    async with monitor_pool(backends.postgres.dsn("monitor")) as pool:
        await migrate(pool, MIGRATIONS)
        versions = VersionCache(pool, OneReference())
        store = PostgresStore(pool, versions, PANE_US)
        largest = 0
        for role, release, rollout in ((1, 1, ROLLOUT), (2, 2, ROLLOUT), (1, 1, "")):
            batch = columns_of(Stream(1, 1), role=role, release=release, rollout=rollout)
            variant = await versions.variant(batch)
            largest = max(largest, await _fill(pool, variant.id, variant.version))
        found = [
            measure.row(
                f"state per version and pane of a day, {len(FEATURES)} features",
                largest / 1024,
                "KiB",
                measure.at_most(32, of_value=True),
            )
        ]
        # Of so many new rows; else autovacuum does it beside the calls.
        await pool.execute("VACUUM ANALYZE pane")
        servicer = MonitorServicer(store=store, archive=None, lag=None, replays=None, pane_us=PANE_US)  # type: ignore[arg-type]
        # As the service does when it is built (flywheel_common.process.runtime).
        gc.collect()
        gc.freeze()
        for name, call in _calls(servicer):
            if only in name:
                found += await _timed(pool, name, call)
        return found


def _calls(servicer: MonitorServicer) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
    """Name and call of every read."""
    for name, days in RANGES.items():
        ends = END_US - days * DAY_US, END_US
        report, performance = (
            pb.GetDriftReportRequest(name=VERSION),
            pb.GetPerformanceRequest(model_version=VERSION),
        )
        for request in (report, performance):
            request.start_time.FromMicroseconds(ends[0])
            request.end_time.FromMicroseconds(ends[1])
        compared = pb.CompareVariantsRequest(
            rollout=ROLLOUT,
            champion_release=f"{MODEL}/releases/1",
            challenger_release=f"{MODEL}/releases/2",
            mode=pb.COMPARISON_MODE_CANARY,
        )
        compared.start_time.FromMicroseconds(ends[0])
        yield f"GetDriftReport of {name}", lambda r=report: servicer.GetDriftReport(r, None)
        yield f"GetPerformance of {name}", lambda r=performance: servicer.GetPerformance(r, None)
        yield f"CompareVariants of {name}", lambda r=compared: servicer.CompareVariants(r, None)


async def _timed(pool: Pool, name: str, call: Callable[[], Awaitable[Any]]) -> list[measure.Row]:
    for _ in range(3):
        await call()
    reset_peak(os.getpid())
    before = resident_bytes(os.getpid())
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e3)
    changed = []
    for _ in range(CHANGES):
        await pool.execute(_CHANGE, END_US - PANE_US)
        started = time.perf_counter()
        await call()
        changed.append((time.perf_counter() - started) * 1e3)
    growth = (peak_bytes(os.getpid()) - before) / 2**20
    limit = 50.0 if "year" in name else 5.0
    return [
        measure.row(
            f"{name}, p99", float(np.quantile(times, 0.99)), "ms", measure.at_most(limit, of_value=True)
        ),
        measure.row(f"{name}, p50", float(np.median(times)), "ms", None),
        measure.row(f"{name}, after a change, p50", float(np.median(changed)), "ms", None),
        measure.row(f"{name}, additional memory", growth, "MiB", measure.at_most(20, of_value=True)),
    ]


async def _fill(pool: Pool, variant_id: int, version: WatchedVersion) -> int:
    """Store the panes; returns the bytes of the largest."""
    edges = [END_US - days * DAY_US for days in (0, *RANGES.values())]
    last_day = END_US // DAY_US * DAY_US
    days = range(last_day - 366 * DAY_US, last_day + DAY_US, DAY_US)
    hours = set(range(last_day - 9 * DAY_US, last_day + DAY_US, HOUR_US))
    for edge in edges:
        start = edge // DAY_US * DAY_US
        hours.update(range(start, start + DAY_US, HOUR_US))
    minutes = {
        m for e in edges for m in range(e // HOUR_US * HOUR_US, e // HOUR_US * HOUR_US + HOUR_US, PANE_US)
    }
    largest = 0
    for name, starts in (("day", days), ("hour", sorted(hours)), ("minute", sorted(minutes))):
        width = WIDTHS[name]
        pane = _pane(version, ROWS_PER_HOUR * width // HOUR_US // PARTITIONS)
        largest = max(largest, len(pane.counts) + len(pane.sums))
        known = [s for s in starts if s <= END_US]
        async with transaction(pool) as conn:
            await conn.execute(
                _WRITE, variant_id, width, pane.predictions, pane.counts, pane.sums, known, PARTITIONS - 1
            )
    return largest


def _pane(version: WatchedVersion, rows: int) -> PackedPane:
    """The pane of some random rows."""
    batch = columns_of(Stream(rows, rows, hours=0.01))
    panes = PaneAccumulator(version.layout, DAY_US)
    counted = rows_of(batch, np.ones(rows, np.bool_))
    panes.add_rows(counted)
    labels = (np.random.default_rng(0).uniform(size=rows) < batch.scores).astype(np.float64)
    half = slice(rows // 2)
    panes.add_labels(
        LabelledRows(
            event_times=counted.event_times[half],
            segments=("",) * (rows // 2),
            scores=counted.scores[half],
            outputs=counted.outputs[half],
            labels=labels[half],
            weights=np.ones(rows // 2, np.int64),
        )
    )
    (pane,) = panes.merge({}).values()
    return pane
