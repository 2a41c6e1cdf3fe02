"""The monitor inside this process: its store in memory or in PostgreSQL, and its servicer behind a real
server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.kafka import topics
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.api.servicer import MonitorServicer
from flywheel_monitor.archive.metrics import ArchiveMetrics
from flywheel_monitor.archive.prediction_archive import ArchiveSettings, PredictionArchive
from flywheel_monitor.comparison.rollout_evidence import RolloutEvidence, rollout_evidence
from flywheel_monitor.comparison.step_verdicts import StepLimits
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.report_lookup import find_report
from flywheel_monitor.fakes.lag import MemoryLag
from flywheel_monitor.fakes.references import MemoryReferences
from flywheel_monitor.fakes.replays import NoEventLog, NoScratchStates
from flywheel_monitor.fakes.store import MemoryStore
from flywheel_monitor.ingest.batches import IngestCounts, OutcomeColumns, PredictionColumns
from flywheel_monitor.ingest.ports import ConsumerLag
from flywheel_monitor.performance.served import ServedPerformance, served_performance
from flywheel_monitor.permissions import PERMISSIONS, SERVICE
from flywheel_monitor.replay.replay import Replays
from flywheel_monitor.server import MIGRATIONS, Records
from flywheel_monitor.store.postgres.pool import monitor_pool
from flywheel_monitor.store.postgres.records import PostgresStore
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected
from flywheel_protos.monitor.v1 import monitor_pb2_grpc
from tests.support import serving
from tests.support.builders.monitor import MODEL, PANE_US, REFERENCE, version_name


@dataclass
class LocalMonitor:
    """A store with what ingestion writes to it and what the use cases read from it. Versions 1 and 2 of
    MODEL have a reference. `announced` returns the alerts whose drift events were published,
    `deliveries` (sink, event id, body) of what is sent to sinks, both in order."""

    store: Store[Records]
    references: MemoryReferences
    announced: Callable[[], Awaitable[list[str]]]
    deliveries: Callable[[], Awaitable[list[tuple[str, str, bytes]]]]

    async def predicted(self, *batches: PredictionColumns, partition: int = 0) -> None:
        async with self.store.transaction() as records:
            await records.add_predictions(partition, batches)

    async def labelled(self, *batches: OutcomeColumns, partition: int = 0) -> None:
        async with self.store.transaction() as records:
            await records.add_outcomes(partition, batches)

    async def counts(self, project: str = "p") -> IngestCounts:
        async with self.store.reading() as records:
            return await records.counts(project)

    async def status(self, project: str = "p") -> tuple[IngestCounts, int | None, int]:
        """(totals, reached event time, number of evaluated windows)."""
        async with self.store.reading() as records:
            return (
                await records.counts(project),
                await records.reached(project),
                await records.evaluated(project),
            )

    async def version_id(self, number: int = 1) -> int:
        async with self.store.reading() as records:
            version = await records.version(version_name(number))
        assert version is not None
        return version.id

    async def performance(
        self, version: str = "", start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> ServedPerformance:
        return await served_performance(
            self.store,
            version or version_name(),
            start_us=start_us,
            end_us=end_us,
            segment=segment,
            pane_us=PANE_US,
        )

    async def report(
        self, name: str = "", start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> Report:
        return await find_report(
            self.store,
            name or version_name(),
            start_us=start_us,
            end_us=end_us,
            segment=segment,
            pane_us=PANE_US,
        )

    async def compare(
        self,
        *,
        shadow: bool,
        since_us: int | None = None,
        generation: int = 0,
        limits: StepLimits | None = None,
    ) -> RolloutEvidence:
        """Release 2 (challenger) with release 1 (champion) in rollout 1."""
        names = f"{MODEL}/rollouts/1", f"{MODEL}/releases/1", f"{MODEL}/releases/2"
        return await rollout_evidence(
            self.store,
            *names,
            shadow=shadow,
            start_us=since_us,
            alpha=0.0,
            generation=generation,
            limits=limits,
        )


def known_references() -> MemoryReferences:
    references = MemoryReferences()
    references.known = {version_name(n): REFERENCE for n in (1, 2)}
    return references


def memory_monitor() -> LocalMonitor:
    references = known_references()
    store = MemoryStore(references, PANE_US, SystemClock())

    async def announced() -> list[str]:
        return [drift.alert for drift in store.announced]

    async def deliveries() -> list[tuple[str, str, bytes]]:
        return [(sink, event, body) for (_, sink, event), body in store.deliveries.items()]

    return LocalMonitor(store, references, announced, deliveries)


@asynccontextmanager
async def postgres_monitor(dsn: str) -> AsyncIterator[LocalMonitor]:
    references = known_references()
    async with monitor_pool(dsn) as pool:
        await migrate(pool, MIGRATIONS)

        async def announced() -> list[str]:
            rows = await pool.fetch("SELECT topic, value FROM outbox ORDER BY id")
            assert {r["topic"] for r in rows} <= {topics.DRIFT_DETECTED}
            return [DriftDetected.FromString(Event.FromString(r["value"]).payload).alert for r in rows]

        async def deliveries() -> list[tuple[str, str, bytes]]:
            rows = await pool.fetch("SELECT webhook, event_id, body FROM webhook_delivery ORDER BY serial")
            return [(row["webhook"], row["event_id"], bytes(row["body"])) for row in rows]

        store = PostgresStore(pool, VersionCache(pool, references), PANE_US)
        await store.adopt_panes()
        yield LocalMonitor(store, references, announced, deliveries)


@asynccontextmanager
async def served(store: Store[Any], lag: ConsumerLag | None = None) -> AsyncIterator[Any]:
    """A stub of the servicer on this store, behind its real server. The archive's bucket is `b`."""
    async with (
        listening(store, lag) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield monitor_pb2_grpc.MonitorServiceStub(channel)


@asynccontextmanager
async def listening(store: Store[Any], lag: ConsumerLag | None = None) -> AsyncIterator[str]:
    """The address of that server."""
    archive = PredictionArchive(
        store, MemoryObjectStore(), ArchiveSettings("b"), ArchiveMetrics(CollectorRegistry())
    )
    servicer = MonitorServicer(
        store=store,
        archive=archive,
        lag=lag or MemoryLag(),
        replays=Replays(store, NoEventLog(), NoScratchStates(), skew_us=0),
        pane_us=PANE_US,
    )
    async with AsyncExitStack() as stack:
        yield await serving.listening(
            stack,
            MonitorSettings,
            monitor_pb2_grpc.add_MonitorServiceServicer_to_server,
            servicer,
            service=SERVICE,
            permissions=PERMISSIONS,
        )
