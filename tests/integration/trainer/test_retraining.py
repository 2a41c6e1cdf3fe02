"""Drift events on real Kafka: one decision and at most one pipeline run each, also if delivered
repeatedly."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration

from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.producer import Producer
from flywheel_local.kafka import Kafka
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import DriftDetected, TrainingCompleted
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import MODEL

POLICY = "projects/default/retrainingPolicies/late"
T = datetime(2013, 6, 1, tzinfo=UTC)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def drift(alert: str, at: datetime, kind: str = "DATA_DRIFT", *, event_id: str | None = None) -> Event:
    payload = DriftDetected(alert=f"projects/default/alerts/{alert}", model=MODEL, kind=kind)
    payload.window_end.FromDatetime(at)
    payload.window_start.FromDatetime(at - timedelta(days=1))
    return build_event(payload, source="test", key=MODEL, event_time=at, event_id=event_id)


def policy() -> pb.RetrainingPolicy:
    source = training_set_pb2.SourceSpine(
        source="projects/default/sources/landed", timestamp_field="at", label="late"
    )
    return pb.RetrainingPolicy(
        name=POLICY,
        pipeline=pb.PipelineSpec(
            model=MODEL,
            feature_set="projects/default/featureSets/late",
            spine=training_set_pb2.Spine(source=source),
            train=pb.TrainSpec(experiment="late"),
        ),
        cooldown=Duration(seconds=7 * 86_400),
        history=Duration(seconds=30 * 86_400),
    )


async def test_a_repeated_alert_starts_one_run_and_each_alert_is_decided(
    trainer_settings: dict[str, str],
    with_kafka: dict[str, str],
    kafka: Kafka,
    database: str,
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
) -> None:
    trainer = await start_trainer(trainer_settings | with_kafka)
    topic = with_kafka["FLYWHEEL_TRAINER_DRIFT_TOPIC"]
    async with trainer.stub() as stub, Producer(kafka.bootstrap, client_id="test") as producer:
        await stub.SetRetrainingPolicy(pb.SetRetrainingPolicyRequest(policy=policy(), request_id="p"))
        await producer.send(topic, b"no event at all")
        once = drift("a1", T, event_id="e1")
        # Delivered twice, and sent again under another event id.
        for event in (once, once, drift("a1", T, event_id="e2")):
            await producer.send(topic, event)

        async def decided(count: int) -> list[pb.RetrainingDecision] | None:
            answer = await stub.ListRetrainingDecisions(pb.ListRetrainingDecisionsRequest(parent=POLICY))
            return list(answer.decisions) if len(answer.decisions) >= count else None

        (first,) = await eventually(lambda: decided(1), within=90, every=0.2)
        assert (first.reason, first.started, first.alert) == ("STARTED", True, "projects/default/alerts/a1")
        await producer.send(topic, drift("a2", T + timedelta(days=1)))
        await producer.send(topic, drift("a3", T + timedelta(days=30), "DATA_QUALITY"))
        decisions = {
            d.alert.rsplit("/", 1)[1]: d for d in await eventually(lambda: decided(3), within=90, every=0.2)
        }
        assert {alert: d.reason for alert, d in decisions.items()} == {
            "a1": "STARTED",
            "a2": "RUN_ACTIVE",
            "a3": "DATA_QUALITY",
        }

        runs = (
            await stub.ListPipelineRuns(pb.ListPipelineRunsRequest(parent="projects/default"))
        ).pipeline_runs
        assert [run.name for run in runs] == [first.pipeline_run]
        (run,) = runs
        source = run.spec.spine.source
        assert run.cause_alert == "projects/default/alerts/a1"
        assert source.end_time.ToDatetime(tzinfo=UTC) == source.known_before.ToDatetime(tzinfo=UTC) == T
        assert source.start_time.ToDatetime(tzinfo=UTC) == T - timedelta(days=30)

        # The run waits for its unavailable peers until it is cancelled.
        await stub.CancelPipelineRun(pb.CancelPipelineRunRequest(name=run.name))

        async def ended() -> pb.PipelineRun | None:
            found = (await stub.GetPipelineRun(pb.GetPipelineRunRequest(name=run.name))).pipeline_run
            return found if found.HasField("ended_at") else None

        assert (await eventually(ended, within=90, every=0.2)).state == job_pb2.JOB_STATE_CANCELLED
        await producer.send(topic, drift("a4", T + timedelta(days=2)))
        late = {
            d.alert.rsplit("/", 1)[1]: d.reason
            for d in await eventually(lambda: decided(4), within=90, every=0.2)
        }
        assert late["a4"] == "COOLDOWN"

    database_connection = await asyncpg.connect(database)
    try:

        async def sent() -> list[Any]:
            return await database_connection.fetch("SELECT value FROM outbox WHERE sent_at IS NOT NULL")

        (row,) = await eventually(sent, within=30)
    finally:
        await database_connection.close()
    event = Event.FromString(row["value"])
    completed = TrainingCompleted.FromString(event.payload)
    assert (completed.succeeded, completed.cause_alert) == (False, "projects/default/alerts/a1")
    assert event.event_time.ToDatetime(tzinfo=UTC) == T
    assert trainer.stop() == 0, trainer.log.read_text()[-6000:]
