"""Windows, alerts, drift events, comparison and archive on real backends."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiobotocore.session import get_session
from aiokafka import AIOKafkaConsumer, TopicPartition
from scipy import stats

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_protos.events.v1 import lifecycle_pb2
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from tests.support.builders.monitor import CHALLENGER, HOUR_US, SHADOW, START_US, log_losses
from tests.support.eventually import eventually
from tests.support.servers.monitor_process import MonitoredModel


async def set_policy(world: MonitoredModel, **fields: Any) -> None:
    policy = pb.MonitorPolicy(model=world.model, min_predictions=200, min_labels=200, **fields)
    policy.window.FromMicroseconds(6 * HOUR_US)
    policy.lateness.FromMicroseconds(HOUR_US)
    await world.monitor.stub.SetMonitorPolicy(pb.SetMonitorPolicyRequest(policy=policy, request_id="p1"))


async def drift_events(world: MonitoredModel) -> list[lifecycle_pb2.DriftDetected]:
    """Every `drift.detected` of this model."""
    found = []
    consumer = AIOKafkaConsumer(bootstrap_servers=world.kafka)
    await consumer.start()
    try:
        partitions = [TopicPartition(topics.DRIFT_DETECTED, p) for p in range(topics.DEFAULT_PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        for tp in partitions:
            while await consumer.position(tp) < ends[tp]:
                event = parse_event((await consumer.getone(tp)).value)
                drift = payload_of(event, lifecycle_pb2.DriftDetected)
                if drift.model == world.model:
                    found.append((event.id, drift))
    finally:
        await consumer.stop()
    assert len({event_id for event_id, _ in found}) == len(found)
    return [drift for _, drift in found]


async def alerts(world: MonitoredModel, filter_text: str = "") -> list[pb.Alert]:
    request = pb.ListAlertsRequest(parent=f"projects/{world.project}", filter=filter_text)
    return list((await world.monitor.stub.ListAlerts(request)).alerts)


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_drift_opens_an_alert_that_is_announced_and_resolved(world: MonitoredModel) -> None:
    world.register(metrics={"score_mean": 0.5, "score_stddev": 0.26})
    await set_policy(world)
    shifts = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    total = 0
    for k, shift in enumerate(shifts):
        r = world.rows(400, seed=k, start_us=START_US + k * 6 * HOUR_US, hours=6)
        r["delays"] = r["delays"] + shift
        await world.predict(**r)
        total += 400
    await world.processed(total)

    async def judged() -> bool:
        return (await world.status()).windows_evaluated >= 8

    await eventually(judged, within=40, every=0.2)

    async def resolved() -> Any:
        found = await alerts(world, f"model={world.model} AND kind=DATA_DRIFT")
        assert [a.state for a in found] == [pb.ALERT_STATE_RESOLVED]
        return found[0]

    alert = await eventually(resolved, within=30, every=0.2)
    assert alert.window_end.ToMicroseconds() == START_US + 4 * 6 * HOUR_US
    assert alert.last_window_end.ToMicroseconds() == START_US + 5 * 6 * HOUR_US
    assert alert.features[0].feature == "flights__delay"
    assert alert.features[0].psi_corrected > 0.2
    assert alert.features[0].mean_shift == pytest.approx(1.0, abs=0.2)

    async def announced() -> Any:
        found = await drift_events(world)
        return found if len(found) >= 2 else None

    events = await eventually(announced, within=30, every=0.3)
    assert Counter(e.kind for e in events) == {"DATA_DRIFT": 2}
    assert {e.alert for e in events} == {alert.name}
    assert not any(e.data_quality_cause for e in events)
    assert events[0].features[0].feature == "flights__delay"
    report = (await world.monitor.stub.GetDriftReport(pb.GetDriftReportRequest(name=world.model))).report
    assert report.verdict == pb.DRIFT_VERDICT_NO_DRIFT
    assert report.reference_score_mean == 0.5


async def test_missing_values_are_bad_data_and_no_retraining_cause(world: MonitoredModel) -> None:
    world.register()
    await set_policy(world)
    for k in range(4):
        r = world.rows(400, seed=k, start_us=START_US + k * 6 * HOUR_US, hours=6)
        await world.predict(**r, valid=np.arange(400) % 2 == 0)

    async def opened() -> Any:
        return await alerts(world, "kind=DATA_QUALITY AND state=OPEN")

    (alert,) = await eventually(opened, within=40, every=0.2)
    assert [f.feature for f in alert.features] == ["flights__delay"]
    assert "missing" in alert.reason
    acknowledged = await world.monitor.stub.AcknowledgeAlert(pb.AcknowledgeAlertRequest(name=alert.name))
    assert acknowledged.alert.state == pb.ALERT_STATE_ACKNOWLEDGED
    resolve = pb.ResolveAlertRequest(name=alert.name, reason="the sensor is back", request_id="r1")
    for _ in range(2):
        assert (await world.monitor.stub.ResolveAlert(resolve)).alert.state == pb.ALERT_STATE_RESOLVED
    error = await refused(world.monitor.stub.AcknowledgeAlert(pb.AcknowledgeAlertRequest(name=alert.name)))
    assert error.reason == "ALERT_RESOLVED"

    async def announced() -> Any:
        return await drift_events(world)

    events = await eventually(announced, within=30, every=0.3)
    assert all(e.data_quality_cause for e in events)
    assert {e.kind for e in events} == {"DATA_QUALITY"}


async def test_a_lower_auc_than_on_held_out_rows_is_concept_drift(world: MonitoredModel) -> None:
    world.register(metrics={"auc": 0.80, "log_loss": 0.5, "label_mean": 0.5})
    await set_policy(world)
    rng = np.random.default_rng(0)
    for k in range(5):
        r = world.rows(400, seed=k, start_us=START_US + k * 6 * HOUR_US, hours=6)
        await world.predict(**r)
        await world.label(r["ids"], rng.integers(0, 2, 400).astype(float), r["times"] + HOUR_US)

    async def opened() -> Any:
        return await alerts(world, "kind=CONCEPT_DRIFT")

    (alert,) = await eventually(opened, within=40, every=0.2)
    assert "AUC" in alert.reason
    assert await alerts(world, "kind=LABEL_DRIFT") == []


async def test_without_a_training_set_predictions_count_without_a_report(world: MonitoredModel) -> None:
    world.register(with_profile=False)
    r = world.rows(300)
    await world.predict(**r)
    await world.processed(300)
    error = await refused(
        world.monitor.stub.GetDriftReport(pb.GetDriftReportRequest(name=world.version_name()))
    )
    assert error.reason == "NO_REFERENCE"
    error = await refused(
        world.monitor.stub.GetDriftReport(
            pb.GetDriftReportRequest(name=f"projects/{world.project}/models/none")
        )
    )
    assert error.reason == "UNKNOWN_MODEL"


async def compare(world: MonitoredModel, mode: int, **fields: Any) -> pb.CompareVariantsResponse:
    request = pb.CompareVariantsRequest(
        rollout=f"{world.model}/rollouts/1",
        champion_release=world.release(1),
        challenger_release=world.release(2),
        mode=mode,
        **fields,
    )
    return await world.monitor.stub.CompareVariants(request)


async def test_a_shadow_is_compared_in_pairs(world: MonitoredModel) -> None:
    world.register(1)
    world.register(2)
    empty = await compare(world, pb.COMPARISON_MODE_SHADOW)
    assert (empty.labelled, empty.champion.predictions, empty.log_loss_delta_upper) == (0, 0, np.inf)
    rollout = f"{world.model}/rollouts/1"
    r = world.rows(1000)
    rng = np.random.default_rng(2)
    labels = (rng.uniform(size=1000) < r["scores"]).astype(float)
    challenger = np.clip(r["scores"] + rng.normal(0, 0.1, 1000), 0.01, 0.99)
    await world.predict(**r, rollout=rollout)
    shadow = {**r, "scores": challenger}
    await world.predict(**shadow, rollout=rollout, role=SHADOW, release=2, version=2)
    await world.label(r["ids"][:700], labels[:700], r["times"][:700] + HOUR_US)

    async def labelled() -> Any:
        found = await compare(world, pb.COMPARISON_MODE_SHADOW)
        assert (found.labelled, found.challenger.predictions) == (700, 1000)
        return found

    found = await eventually(labelled, within=40, every=0.1)
    difference = log_losses(challenger[:700], labels[:700]) - log_losses(r["scores"][:700], labels[:700])
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.90)
    assert found.log_loss_delta == pytest.approx(difference.mean(), abs=1e-9)
    assert (found.log_loss_delta_lower, found.log_loss_delta_upper) == pytest.approx((low, high), abs=1e-9)
    assert found.disagreement_rate == pytest.approx(((challenger >= 0.5) != (r["scores"] >= 0.5)).mean())
    later = pb.CompareVariantsRequest()
    later.start_time.FromMicroseconds(int(r["times"][500]))
    since = await compare(world, pb.COMPARISON_MODE_SHADOW, start_time=later.start_time)
    assert (since.champion.predictions, since.labelled) == (500, 200)
    # Of 500 requests the oldest percent starts no bake time, and the third newest ends it.
    covered = since.covered_from.ToMicroseconds(), since.covered_until.ToMicroseconds()
    assert covered == (r["times"][504], r["times"][997])


async def test_a_canary_is_compared_by_means_with_its_errors(world: MonitoredModel) -> None:
    world.register(1)
    world.register(2)
    rollout = f"{world.model}/rollouts/1"
    champion, challenger = world.rows(900, seed=1), world.rows(100, seed=2)
    sources = np.ones(100)
    sources[:10] = 4
    scores = challenger["scores"].copy()
    scores[:10] = np.nan
    await world.predict(**champion, rollout=rollout)
    await world.predict(
        **{**challenger, "scores": scores},
        rollout=rollout,
        role=CHALLENGER,
        release=2,
        version=2,
        sources=sources,
        latencies=np.linspace(1, 100, 100),
    )
    for part in (champion, challenger):
        await world.label(part["ids"], (part["scores"] > 0.4).astype(float), part["times"])

    async def labelled() -> Any:
        found = await compare(world, pb.COMPARISON_MODE_CANARY)
        assert (found.champion.labelled, found.challenger.labelled) == (900, 90)
        return found

    found = await eventually(labelled, within=40, every=0.1)
    assert found.challenger.predictions == 100
    assert found.challenger.error_rate == pytest.approx(0.1)
    assert found.champion.error_rate == 0.0
    assert 99 <= found.challenger.latency_p99_ms <= 110, "the upper edge of a bin"
    a, b = (
        log_losses(p["scores"][k:], (p["scores"][k:] > 0.4).astype(float))
        for p, k in ((challenger, 10), (champion, 0))
    )
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    assert (found.log_loss_delta_lower, found.log_loss_delta_upper) == pytest.approx((low, high), abs=1e-9)
    assert not found.HasField("disagreement_rate")


async def read_archive(world: MonitoredModel) -> pa.Table:
    tables = []
    async with get_session().create_client(
        "s3",
        endpoint_url=world.s3.endpoint,
        aws_access_key_id=world.s3.access_key,
        aws_secret_access_key=world.s3.secret_key,
        region_name="us-east-1",
    ) as client:
        listed = await client.list_objects_v2(
            Bucket=world.bucket, Prefix=f"predictions/{world.project}/late/"
        )
        for item in listed.get("Contents", []):
            body = (await client.get_object(Bucket=world.bucket, Key=item["Key"]))["Body"]
            table = pq.read_table(io.BytesIO(await body.read()))
            day = {str(t.date()) for t in table["event_time"].to_pylist()}
            assert day == {item["Key"].split("date=")[1][:10]}
            tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive")


@pytest.mark.parametrize("killed", [False, True])
async def test_the_archive_holds_each_prediction_once(world: MonitoredModel, killed: bool) -> None:
    world.register()
    r = world.rows(1200, hours=60)
    await world.predict(**r)
    if killed:
        await world.predict(**r)
        await world.monitor.kill()
        await world.monitor.start()
    await world.processed(1200)
    request = pb.GetPredictionArchiveRequest(model=world.model)

    async def archived() -> Any:
        found = await world.monitor.stub.GetPredictionArchive(request)
        assert found.rows == 1200
        return found

    found = await eventually(archived, within=40, every=0.2)
    assert found.uri == f"s3://{world.bucket}/predictions/{world.project}/late/"
    assert found.last_event.ToMicroseconds() == r["times"][-1]
    table = await read_archive(world)
    assert sorted(table["prediction_id"].to_pylist()) == sorted(r["ids"])
    row = {
        name: values[0]
        for name, values in table.filter(pc.equal(table["prediction_id"], r["ids"][7])).to_pydict().items()
    }
    assert row["score"] == r["scores"][7]
    assert row["flights__delay"] == r["delays"][7]
    assert row["entity__flight"] == r["ids"][7]
    assert row["request__distance"] == r["delays"][7] * 2
    assert int(row["event_time"].timestamp() * 1e6) == pytest.approx(r["times"][7], abs=1)
    assert (row["role"], row["source"], row["subject"]) == ("CHAMPION", "MODEL", "s7")
    assert row["model_version"] == world.version_name()
    applied = dict(zip(table["prediction_id"].to_pylist(), table["applied__w@2"].to_pylist(), strict=True))
    for i, prediction in enumerate(r["ids"]):
        logged = topics.partition_for(prediction) != 0
        assert applied[prediction] == ([3, i] * (i % 2) if logged else None)
