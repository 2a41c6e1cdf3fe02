"""The monitor's store behind what callers ask it through: its records and queries (memory, PostgreSQL), or gRPC.

What comes by Kafka and what the watch finds is put into the store; what people do and ask goes the way of the parameter. So a law
about what can be asked by RPC holds at the edge too, through a real channel, the real servicer and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from datetime import UTC
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from flywheel_common import topics
from flywheel_common.clock import SystemClock
from flywheel_common.columns import from_numpy, from_texts, to_table
from flywheel_common.error_details import from_rpc_error
from flywheel_common.errors import NotFound
from flywheel_common.grpc_server import Server
from flywheel_common.migrate import migrate
from flywheel_common.objects import MemoryObjectStore
from flywheel_common.paging import Page
from flywheel_common.postgres import create_pool
from flywheel_monitor import convert
from flywheel_monitor.alert import Alert, parse_filter
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.archive import Archive, ArchiveSettings
from flywheel_monitor.batches import IngestCounts, OutcomeColumns, PredictionColumns
from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.memory import MemoryReferences, MemoryStore
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.ports import Store
from flywheel_monitor.queries import Queries
from flywheel_monitor.references import Reference
from flywheel_monitor.resource_names import AlertName
from flywheel_monitor.server import MIGRATIONS, PERMISSIONS, SERVICE
from flywheel_monitor.servicer import MonitorServicer
from flywheel_monitor.store.lag import LagProbe
from flywheel_monitor.store.records import PostgresStore
from flywheel_monitor.store.versions import Versions
from flywheel_monitor.windows import Span
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc

PANE_US = 60_000_000
START_US = 1_364_774_400_000_000  # 2013-04-01
MODEL = "projects/p/models/late"


class Direct:
    """Asks the store and the queries themselves."""

    def __init__(self, store: Store) -> None:
        self._store, self._queries = store, Queries(store, PANE_US)

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        async with self._store.transaction() as records:
            await records.set_policy(model, policy)

    async def policy(self, model: str) -> MonitorPolicy | None:
        async with self._store.reading() as records:
            return await records.policy(model)

    async def alert(self, name: str) -> Alert:
        async with self._store.reading() as records:
            return await records.alert(AlertName.parse(name))

    async def alerts(
        self, project: str, filter_text: str = "", size: int = 99, token: str = ""
    ) -> Page[Alert]:
        async with self._store.reading() as records:
            return await records.alerts(project, parse_filter(filter_text), size, token)

    async def acknowledge(self, name: str, by: str) -> Alert:
        async with self._store.transaction() as records:
            return await records.acknowledge_alert(AlertName.parse(name), by)

    async def resolve(self, name: str, reason: str) -> Alert:
        async with self._store.transaction() as records:
            return await records.resolve_alert(AlertName.parse(name), reason)

    async def status(self, project: str = "p") -> tuple[IngestCounts, int | None, int]:
        """What was counted, the newest event time, and how many windows were evaluated."""
        async with self._store.reading() as records:
            return (
                await records.counts(project),
                await records.newest(project),
                await records.evaluated(project),
            )

    async def archived(self, model: str = MODEL) -> tuple[int, int | None]:
        """Rows in the archive, and the newest event time among them."""
        async with self._store.reading() as records:
            return await records.archived(model)

    async def performance(
        self, version: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.Performance:
        return convert.performance_to_proto(
            await self._queries.performance(version, start_us, end_us, segment)
        )

    async def report(
        self, name: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.DriftReport:
        return convert.report_to_proto(await self._queries.drift(name, start_us, end_us, segment))

    async def compare(self, *, shadow: bool, since_us: int | None = None) -> pb.CompareVariantsResponse:
        """The challenger, release 2, with the champion, release 1, in rollout 1."""
        names = f"{MODEL}/rollouts/1", f"{MODEL}/releases/1", f"{MODEL}/releases/2"
        found = await self._queries.compare(*names, shadow=shadow, start_us=since_us, alpha=0.0)
        return convert.comparison_to_proto(*names[1:], found)


class OverGrpc:
    """Asks the service: the same questions, each one an RPC."""

    def __init__(self, stub: monitor_pb2_grpc.MonitorServiceStub) -> None:
        self.stub = stub

    async def _call(self, method: str, request: Any, **options: Any) -> Any:
        try:
            return await getattr(self.stub, method)(request, timeout=20, **options)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        message = convert.policy_to_proto(model, policy)
        await self._call("SetMonitorPolicy", pb.SetMonitorPolicyRequest(policy=message))

    async def policy(self, model: str) -> MonitorPolicy | None:
        try:
            answer = await self._call("GetMonitorPolicy", pb.GetMonitorPolicyRequest(model=model))
        except NotFound as absent:
            if absent.reason != "UNKNOWN_MODEL":
                raise
            return None
        return convert.policy_from_proto(answer.policy)

    async def alert(self, name: str) -> Alert:
        return alert_from((await self._call("GetAlert", pb.GetAlertRequest(name=name))).alert)

    async def alerts(
        self, project: str, filter_text: str = "", size: int = 99, token: str = ""
    ) -> Page[Alert]:
        request = pb.ListAlertsRequest(
            parent=f"projects/{project}", page_size=size, page_token=token, filter=filter_text
        )
        answer = await self._call("ListAlerts", request)
        return Page([alert_from(a) for a in answer.alerts], answer.next_page_token)

    async def acknowledge(self, name: str, by: str) -> Alert:
        request = pb.AcknowledgeAlertRequest(name=name)
        answer = await self._call("AcknowledgeAlert", request, metadata=(("x-flywheel-actor", by),))
        return alert_from(answer.alert)

    async def resolve(self, name: str, reason: str) -> Alert:
        request = pb.ResolveAlertRequest(name=name, reason=reason)
        return alert_from((await self._call("ResolveAlert", request)).alert)

    async def status(self, project: str = "p") -> tuple[IngestCounts, int | None, int]:
        answer = await self._call("GetIngestStatus", pb.GetIngestStatusRequest(parent=f"projects/{project}"))
        counts = IngestCounts(answer.predictions, answer.outcomes, answer.orphan_outcomes, answer.duplicates)
        return counts, convert.micros_of(answer, "watermark"), answer.windows_evaluated

    async def archived(self, model: str = MODEL) -> tuple[int, int | None]:
        answer = await self._call("GetPredictionArchive", pb.GetPredictionArchiveRequest(model=model))
        assert f"s3://b/predictions/{model.split('/')[1]}/{model.split('/')[3]}/" == answer.uri
        return answer.rows, convert.micros_of(answer, "last_event")

    async def performance(
        self, version: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.Performance:
        request = pb.GetPerformanceRequest(
            model_version=version,
            start_time=convert.timestamp(start_us),
            end_time=convert.timestamp(end_us),
            segment=segment,
        )
        return (await self._call("GetPerformance", request)).performance

    async def report(
        self, name: str, start_us: int | None = None, end_us: int | None = None, segment: str = ""
    ) -> pb.DriftReport:
        request = pb.GetDriftReportRequest(
            name=name,
            start_time=convert.timestamp(start_us),
            end_time=convert.timestamp(end_us),
            segment=segment,
        )
        return (await self._call("GetDriftReport", request)).report

    async def compare(self, *, shadow: bool, since_us: int | None = None) -> pb.CompareVariantsResponse:
        request = pb.CompareVariantsRequest(
            rollout=f"{MODEL}/rollouts/1",
            champion_release=f"{MODEL}/releases/1",
            challenger_release=f"{MODEL}/releases/2",
            mode=pb.COMPARISON_MODE_SHADOW if shadow else pb.COMPARISON_MODE_CANARY,
            start_time=convert.timestamp(since_us),
        )
        return await self._call("CompareVariants", request)


def alert_from(message: pb.Alert) -> Alert:
    """What `convert.alert_to_proto` made of it, back."""
    return Alert(
        name=message.name,
        model=message.model,
        model_version=message.model_version,
        kind=Kind(message.kind),
        state=AlertState(message.state),
        span=Span(message.window_start.ToMicroseconds(), message.window_end.ToMicroseconds()),
        last_window_end_us=message.last_window_end.ToMicroseconds(),
        features=tuple(feature_from(f) for f in message.features),
        reason=message.reason,
        opened_at=message.opened_at.ToDatetime(tzinfo=UTC),
        resolved_at=message.resolved_at.ToDatetime(tzinfo=UTC) if message.HasField("resolved_at") else None,
        acknowledged_by=message.acknowledged_by,
        resolved_reason=message.resolved_reason,
    )


def feature_from(message: pb.FeatureDrift) -> FeatureDrift:
    found = {f.name: getattr(message, f.name) for f in fields(FeatureDrift)}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            found[field.name] = None
    return FeatureDrift(**{**found, "verdict": Verdict(message.verdict)})


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

        asks = OverGrpc(await served(stack, store, pool)) if over_grpc else Direct(store)
        yield Monitor(store, references, asks, left)


async def served(
    stack: AsyncExitStack, store: PostgresStore, pool: Any
) -> monitor_pb2_grpc.MonitorServiceStub:
    """The servicer behind its real server; there is no broker, so that it knows of no lag."""
    lag = LagProbe("127.0.0.1:1", pool, "none", [])
    stack.push_async_callback(lag.close)
    gauges = Gauges(CollectorRegistry())
    servicer = MonitorServicer(
        store=store,
        queries=Queries(store, PANE_US),
        archive=Archive(store, MemoryObjectStore(), ArchiveSettings("b"), gauges),
        lag=lag,
        pane_us=PANE_US,
    )
    settings = MonitorSettings(
        listen="127.0.0.1:0",
        metrics_listen="",
        drain_seconds=0,
        grace_seconds=1,
        postgres_dsn=SecretStr("postgresql://unused"),
        kafka_bootstrap="127.0.0.1:1",
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key=SecretStr("none"),
        s3_secret_key=SecretStr("none"),
        s3_bucket="b",
    )
    server = Server(
        settings,
        servicers=[(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, servicer)],
        full_service_names=[SERVICE],
        permissions=PERMISSIONS,
        registry=CollectorRegistry(),
    )
    await server.start()
    stack.push_async_callback(server.stop)
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
    return monitor_pb2_grpc.MonitorServiceStub(channel)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "without_grpc(why): no RPC does what this law is about")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law is run over all three, but for one that says why no RPC reaches it."""
    if "way" in metafunc.fixturenames:
        without = metafunc.definition.get_closest_marker("without_grpc")
        marks = [pytest.mark.skip(reason=without.args[0])] if without else []
        kinds = ["memory", "postgres", pytest.param("grpc", marks=marks)]
        metafunc.parametrize("way", kinds, indirect=True)
