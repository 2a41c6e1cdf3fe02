"""Traffic of a model through the monitor's event handler and evaluator, with and without strange events and a
second model that shares every id."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.event_time import EventTimeBound
from flywheel_common.ids import SequentialIds
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.poison import Batch, PoisonError
from flywheel_common.kafka.record import Record
from flywheel_monitor.alerts.filter import AlertFilter
from flywheel_monitor.evaluation.evaluator import Evaluator
from flywheel_monitor.evaluation.metrics import EvaluationMetrics
from flywheel_monitor.ingest.consumer import EventHandler
from flywheel_monitor.models.names import ModelName
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.windows.watermark import UnreadPartitions
from flywheel_protos.events.v1 import prediction_pb2
from tests.support.builders.monitor import HOUR_US, REFERENCE, outcomes, predictions
from tests.support.servers.monitor import LocalMonitor

MODELS = ("projects/a/models/late", "projects/b/models/late")
PARTITIONS, RECORD_ROWS = 4, 250
WINDOWS = 8
POLICY = MonitorPolicy(window_us=HOUR_US, lateness_us=HOUR_US, min_predictions=50, min_labels=50, k_of=1)
YEAR_9999_US = 253_370_764_800_000_000
MONTH_US = 30 * 24 * HOUR_US


@dataclass(frozen=True)
class Events:
    """n predictions over the last WINDOWS hours; the feature drifts in the later half."""

    ids: list[str]
    times: np.ndarray
    scores: np.ndarray
    values: np.ndarray
    labels: np.ndarray


END_US = int(time.time()) * 1_000_000 // HOUR_US * HOUR_US - HOUR_US


def traffic(n: int, model: int) -> Events:
    rng = np.random.default_rng(model)
    times = END_US - WINDOWS * HOUR_US + np.arange(n) * (WINDOWS * HOUR_US // n)
    scores = rng.uniform(0.05, 0.95, n)
    values = rng.normal(size=n) + np.where((np.arange(n) > n / 2) & (model == 0), 2.0, 0.0)
    return Events([f"p{i}" for i in range(n)], times, scores, values, (rng.uniform(size=n) < scores) * 1.0)


async def run(monitor: LocalMonitor, n: int, models: Sequence[int], *, strange: bool) -> dict[str, Any]:
    """Model → what the monitor has counted and decided about it, and "dead": the number of rows refused."""
    monitor.references.known = {f"{m}/versions/1": REFERENCE for m in MODELS}
    evaluator = Evaluator(
        monitor.store,
        EvaluationMetrics(CollectorRegistry()),
        SequentialIds("alert"),
        unread=_all_read,
        delay_us=0,
        poll_seconds=1.0,
    )
    async with monitor.store.transaction() as records:
        for m in models:
            await records.set_policy(MODELS[m], POLICY)
    dead = 0
    events = {m: traffic(n, m) for m in models}
    for start in range(0, n, PARTITIONS * RECORD_ROWS):
        for m, e in events.items():
            for partition in range(PARTITIONS):
                rows = range(start + partition, min(n, start + PARTITIONS * RECORD_ROWS), PARTITIONS)
                at = list(rows)
                dead += await consume(monitor, partition, *_messages(MODELS[m], e, at))
                if strange and start == 0 and partition == 1:
                    now = int(time.time() * 1e6)
                    for k, wrong in enumerate((YEAR_9999_US, now + MONTH_US)):
                        odd = replace(e, ids=[f"odd{k}"] * n, times=np.full(n, wrong))
                        dead += await consume(monitor, partition, *_messages(MODELS[m], odd, at[:1]))
        await evaluator.pass_once()
    await evaluator.pass_once()
    return {"dead": dead} | {MODELS[m]: await _found(monitor, MODELS[m]) for m in models}


async def _all_read() -> UnreadPartitions:
    return UnreadPartitions()


def _messages(model: str, e: Events, at: list[int]) -> tuple[Any, Any]:
    ids = [e.ids[i] for i in at]
    batch = predictions(ids, e.scores[at], times=e.times[at], values=e.values[at], model=model)
    labels = outcomes(ids, e.labels[at], times=e.times[at], model=model)
    return prediction_pb2.PredictionBatch.FromString(batch.records[0].payload), prediction_pb2.OutcomeBatch(
        model=model,
        name=labels.name,
        prediction_ids=ids,
        outcome_ids=labels.outcome_ids,
        event_times=labels.event_times.astype("<i8").tobytes(),
        values=labels.values.astype("<f8").tobytes(),
    )


async def consume(monitor: LocalMonitor, partition: int, *messages: Any) -> int:
    """Handle the messages as the consumer loop does; the number of rows that went to the dead letters."""
    handler = EventHandler(lambda conn: conn, EventTimeBound(SystemClock()))  # type: ignore[arg-type, return-value]
    dead = 0
    for message in messages:
        topic = topics.PREDICTION_LOGGED if hasattr(message, "release") else topics.OUTCOME_RECORDED
        event = build_event(message, source="test", key="k", event_time=datetime.now(UTC))
        record = Record(topic, partition, 0, "k", event.SerializeToString(), (), 0, event)
        batch = Batch((record,), 1)
        while batch.records:
            try:
                async with monitor.store.transaction() as records:
                    await handler.handle(records, batch.records)  # type: ignore[arg-type]
                break
            except PoisonError as poison:
                dead += len(poison.records)
                batch = batch.without(poison)
    return dead


async def _found(monitor: LocalMonitor, model: str) -> dict[str, Any]:
    project = ModelName.parse(model).project
    async with monitor.store.reading() as records:
        version = await records.version(f"{model}/versions/1")
        assert version is not None
        page = await records.alerts(project, AlertFilter(), 100, "")
        report = await records.newest_report(version.id)
        verdicts = [
            (kind, v.span, v.verdict, v.reason)
            for kind in {a.kind for a in page.items}
            for v in await records.recent(version.id, kind, 100)
        ]
        counts = await records.counts(project)
        evaluated = await records.evaluated(project)
    performance = await monitor.performance(f"{model}/versions/1")
    return {
        "alerts": [(a.kind, a.state, a.span, a.last_window_end_us, a.features, a.reason) for a in page.items],
        "verdicts": sorted(verdicts),
        "counts": counts,
        "evaluated": evaluated,
        "report": report,
        "performance": performance,
    }
