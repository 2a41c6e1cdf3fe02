"""The monitor's store behind what callers ask it through: its records and queries (memory, PostgreSQL), or gRPC.

What comes by Kafka and what the watch finds is put into the store; what people do and ask goes the way of the parameter. So a law
about what can be asked by RPC holds at the edge too, through a real channel, the real servicer and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.columns import from_numpy, from_texts, to_table
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.kafka import topics
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_monitor import convert
from flywheel_monitor.archive import Archive, ArchiveSettings
from flywheel_monitor.batches import OutcomeColumns, PredictionColumns
from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.memory import MemoryReferences, MemoryStore
from flywheel_monitor.memory_lag import MemoryLag
from flywheel_monitor.ports import ConsumerLag, Store
from flywheel_monitor.queries import Queries
from flywheel_monitor.references import Reference
from flywheel_monitor.server import MIGRATIONS, PERMISSIONS, SERVICE
from flywheel_monitor.servicer import MonitorServicer
from flywheel_monitor.store.lag import LagProbe
from flywheel_monitor.store.records import PostgresStore
from flywheel_monitor.store.versions import Versions
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected
from flywheel_protos.monitor.v1 import monitor_pb2_grpc
from tests.contract.monitor.asks import MODEL, PANE_US, Direct, OverGrpc
from tests.contract.monitor.streams import Asked, AskedOverGrpc, KafkaStream, MemoryStream, Stream
from tests.support import serving

START_US = 1_364_774_400_000_000  # 2013-04-01


@dataclass
class Monitor:
    """`store` is what the consumer and the watch use, `asks` what callers do. Answers of the same model unless told otherwise."""

    store: Store
    references: MemoryReferences
    asks: Direct | OverGrpc
    announced: Any
    """() → the ids of the alerts whose drift events left, in order."""
    start_us: int = START_US
    model: str = MODEL

    def version(self, number: int = 1, model: str = MODEL) -> str:
        return f"{model}/versions/{number}"

    def batch(
        self,
        ids: Sequence[str],
        scores: Sequence[float] | None = None,
        *,
        times: Sequence[int] | None = None,
        values: Sequence[float | None] | None = None,
        role: int = 1,
        release: int = 1,
        version: int = 1,
        rollout: str = "",
        model: str = MODEL,
        sources: Sequence[int] | None = None,
        segments: Sequence[str] = (),
        reasons: Sequence[str] = (),
        decisions: Sequence[bool] | None = None,
        latencies: Sequence[float] | None = None,
    ) -> PredictionColumns:
        """Answers as the gateway logs them: a score of 0.5 in the first minute, a feature `v__x`, and 3 ms, unless told otherwise."""
        n = len(ids)
        values = [0.0] * n if values is None else values
        scores = np.full(n, 0.5) if scores is None else np.asarray(scores, np.float64)
        decisions = scores >= 0.5 if decisions is None else decisions
        valid = np.array([v is not None for v in values], np.bool_)
        feature = from_numpy("v__x", np.array([v or 0.0 for v in values], np.float64), valid)
        message = prediction_pb2.PredictionBatch(
            model=model,
            model_version=self.version(version, model),
            release=f"{model}/releases/{release}",
            rollout=rollout,
            role=role,
            prediction_ids=ids,
            event_times=np.asarray([START_US] * n if times is None else times, "<i8").tobytes(),
            features=to_table([feature]),
            scores=scores.astype("<f8").tobytes(),
            decisions=np.asarray(decisions, "u1").tobytes(),
            sources=np.asarray([1] * n if sources is None else sources, "u1").tobytes(),
            latencies_ms=np.asarray([3.0] * n if latencies is None else latencies, "<f4").tobytes(),
            segments=segments,
            error_reasons=reasons,
            entities=to_table([from_texts("flight", list(ids))]),
        )
        return convert.prediction_columns(message, message.SerializeToString())

    def outcomes(
        self,
        ids: Sequence[str],
        values: Sequence[float],
        *,
        times: Sequence[int] | None = None,
        outcome_ids: Sequence[str] | None = None,
        name: str = "label",
        model: str = MODEL,
    ) -> OutcomeColumns:
        """Labels that became known an hour after the start, one per prediction, unless told otherwise."""
        times = [START_US + 3_600_000_000] * len(ids) if times is None else times
        message = prediction_pb2.OutcomeBatch(
            model=model,
            prediction_ids=ids,
            event_times=np.asarray(times, "<i8").tobytes(),
            name=name,
            values=np.asarray(values, "<f8").tobytes(),
            outcome_ids=[f"o-{i}" for i in ids] if outcome_ids is None else outcome_ids,
        )
        return convert.outcome_columns(message)

    async def predicted(self, *batches: PredictionColumns, partition: int = 0) -> None:
        async with self.store.transaction() as records:
            await records.add_predictions(partition, batches)

    async def labelled(self, *batches: OutcomeColumns, partition: int = 0) -> None:
        async with self.store.transaction() as records:
            await records.add_outcomes(partition, batches)


REFERENCE = Reference(
    (ColumnReference("v__x", True, (50, 50), edges=(0.0,), stddev=1.0, minimum=-3.0, maximum=3.0),),
    {"auc": 0.8, "label_mean": 0.5},
)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """memory, postgres or grpc, and a database unless it is memory."""
    dsn = "" if request.param == "memory" else str(request.getfixturevalue("database"))
    return request.param, dsn


@pytest.fixture
async def monitor(way: tuple[str, str]) -> AsyncIterator[Monitor]:
    """On the store and by the way that the parameter names, with versions 1 and 2 that have a reference."""
    kind, dsn = way
    if kind == "memory":
        references = with_reference()
        store = MemoryStore(references, PANE_US, SystemClock())

        async def left() -> list[str]:
            return [drift.alert for drift in store.announced]

        yield Monitor(store, references, Direct(store), left)
        return
    async with on_postgres(dsn, over_grpc=kind == "grpc") as found:
        yield found


@pytest.fixture
async def edge(database: str) -> AsyncIterator[Monitor]:
    """The same behind gRPC alone."""
    async with on_postgres(database, over_grpc=True) as found:
        yield found


def with_reference() -> MemoryReferences:
    references = MemoryReferences()
    references.known = {f"{MODEL}/versions/{n}": REFERENCE for n in (1, 2)}
    return references


@asynccontextmanager
async def on_postgres(dsn: str, *, over_grpc: bool) -> AsyncIterator[Monitor]:
    references = with_reference()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(create_pool(dsn))
        await migrate(pool, MIGRATIONS)
        store = PostgresStore(pool, Versions(pool, references), PANE_US)

        async def left() -> list[str]:
            rows = await pool.fetch("SELECT topic, value FROM outbox ORDER BY id")
            assert {r["topic"] for r in rows} <= {topics.DRIFT_DETECTED}
            return [DriftDetected.FromString(Event.FromString(r["value"]).payload).alert for r in rows]

        asks = OverGrpc(await served(stack, store, MemoryLag())) if over_grpc else Direct(store)
        yield Monitor(store, references, asks, left)


async def served(
    stack: AsyncExitStack, store: PostgresStore, lag: ConsumerLag
) -> monitor_pb2_grpc.MonitorServiceStub:
    """The servicer behind its real server."""
    gauges = Gauges(CollectorRegistry())
    servicer = MonitorServicer(
        store=store,
        queries=Queries(store, PANE_US),
        archive=Archive(store, MemoryObjectStore(), ArchiveSettings("b"), gauges),
        lag=lag,
        pane_us=PANE_US,
    )
    channel = await serving.served(
        stack, MonitorSettings, monitor_pb2_grpc.add_MonitorServiceServicer_to_server, servicer, service=SERVICE, permissions=PERMISSIONS,
    )  # fmt: skip
    return monitor_pb2_grpc.MonitorServiceStub(channel)


@dataclass
class Consumed:
    """A stream, and the way in which what waits in it is asked."""

    stream: Stream
    asks: Asked | AskedOverGrpc


@pytest.fixture
def lag_way(request: pytest.FixtureRequest) -> tuple[str, Any, str]:
    """memory, kafka (with the positions in PostgreSQL) or grpc (with both behind it), and the two unless it is memory."""
    if request.param == "memory":
        return request.param, None, ""
    return request.param, request.getfixturevalue("kafka"), request.getfixturevalue("database")


@pytest.fixture
async def consumed(lag_way: tuple[str, Any, str]) -> AsyncIterator[Consumed]:
    """By the way that the parameter names."""
    kind, kafka, dsn = lag_way
    if kind == "memory":
        memory = MemoryStream()
        yield Consumed(memory, Asked(memory.lag))
        return
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(create_pool(dsn))
        await migrate(pool, MIGRATIONS)
        producer = await stack.enter_async_context(Producer(kafka.bootstrap, client_id="test"))
        stream = KafkaStream(kafka, pool, producer)
        await stream.create()
        probe = LagProbe(kafka.bootstrap, pool, stream.group, (stream.answers, stream.outcomes))
        stack.push_async_callback(probe.close)
        if kind == "kafka":
            yield Consumed(stream, Asked(probe))
        else:
            store = PostgresStore(pool, Versions(pool, with_reference()), PANE_US)
            yield Consumed(stream, AskedOverGrpc(await served(stack, store, probe)))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "without_grpc(why): no RPC does what this law is about")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law is run over all three, but for one that says why no RPC reaches it."""
    for fixture, store in (("way", "postgres"), ("lag_way", "kafka")):
        if fixture in metafunc.fixturenames:
            without = metafunc.definition.get_closest_marker("without_grpc")
            marks = [pytest.mark.skip(reason=without.args[0])] if without else []
            kinds = ["memory", store, pytest.param("grpc", marks=marks)]
            metafunc.parametrize(fixture, kinds, indirect=True)
