"""Outages of backends and poison events: errors name the backend, and the service recovers."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from aiokafka import AIOKafkaConsumer

import flywheel as fw
from flywheel.tables import to_dict, to_table
from flywheel_common.errors import Unavailable
from flywheel_common.grpc.health import SERVING
from flywheel_common.grpc.server import Server
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import dead_letter
from flywheel_common.postgres.pool import create_pool
from flywheel_feature.definitions.model import TableFormat
from flywheel_feature.server import GROUP
from flywheel_feature.store.kafka.source_topics import topic_name
from flywheel_feature.store.postgres.push_log import PostgresPushLog
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.redis import Redis
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.servers.feature import PARENT

T0 = datetime(2013, 3, 1, tzinfo=UTC)
plane = fw.Entity("plane", {"tailnum": fw.STRING})
SCHEMA = {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "weight": fw.FLOAT64}
weighings = fw.StreamSource("weighings", SCHEMA, timestamp="at")
recent = fw.StreamView("recent", plane, weighings, [fw.count("1h", name="n")])
weighed = fw.FeatureSet("weighed", ["recent:n"])
ROWS = {"tailnum": ["N1"], "at": [T0], "weight": [2.5]}
READ = pb.GetOnlineFeaturesRequest(
    feature_set="projects/default/featureSets/weighed", entities=to_table({"tailnum": ["N1"]})
)
READ.as_of.FromDatetime(T0)
TARGETS = [pb.PUSH_TARGET_ONLINE, pb.PUSH_TARGET_OFFLINE, pb.PUSH_TARGET_ONLINE_AND_OFFLINE]


async def apply(client: fw.Client, bucket: str = "nowhere") -> None:
    """A stream view, and a batch view `facts` with the sets `heavy` and `same`."""
    weights = fw.ParquetSource("weights", SCHEMA, timestamp="at", uri=f"s3://{bucket}/weights/")
    facts = fw.BatchView("facts", plane, weights, {"weight": fw.FLOAT64})
    sets = [fw.FeatureSet(name, ["facts:weight"]) for name in ("heavy", "same")]
    await client.apply(fw.compile_definitions([recent, weighed, facts, *sets], "default"))


async def weight(client: fw.Client, feature_set: str = "heavy") -> Any:
    answer = await client.online_features(feature_set, {"tailnum": ["N1"]})
    return to_dict(answer.features)["facts__weight"][0]


async def push_weight(client: fw.Client, hours: int, value: float, to: int, timeout: float = 4.0) -> None:
    rows = {"tailnum": ["N1"], "at": [T0 + timedelta(hours=hours)], "weight": [value]}
    await client.feature.PushFeatures(
        client.push_request("views/facts", rows, SCHEMA, to=to), timeout=timeout
    )


async def seen(client: fw.Client) -> int | None:
    count = to_dict((await client.feature.GetOnlineFeatures(READ)).features)["recent__n"][0]
    return None if count is None else int(count)


@pytest.mark.timeout(120)
async def test_a_stream_worker_survives_an_outage_of_postgresql(
    client: fw.Client, workers: Any, postgres: Postgres, tmp_path: Path
) -> None:
    await apply(client)
    worker = workers.start()
    await client.push("weighings", ROWS, SCHEMA, ids=["before"])

    async def counted(wanted: int) -> bool:
        return await seen(client) == wanted

    await eventually(lambda: counted(1), within=60)
    postgres.kill()
    await client.push("weighings", ROWS, SCHEMA, ids=["meanwhile"])
    await eventually(lambda: b"POSTGRES_UNAVAILABLE" in (tmp_path / "worker-1.log").read_bytes(), within=30)
    await asyncio.to_thread(postgres.restart)
    await eventually(lambda: counted(2), within=60)
    assert worker.poll() is None, "the worker did not exit"


@pytest.mark.timeout(120)
async def test_a_poison_event_goes_to_the_dead_letter_topic(
    client: fw.Client, workers: Any, kafka: Kafka, topic_prefix: str
) -> None:
    await apply(client)
    workers.start()
    topic = topic_prefix + topic_name("default", "weighings")
    await client.push("weighings", ROWS, SCHEMA, ids=["before"])
    async with Producer(kafka.bootstrap, client_id="test-poison") as producer:
        for partition in range(2):
            await producer.send(topic, b"\xff\xfenot an event", key="poison", partition=partition)
    await client.push("weighings", ROWS, SCHEMA, ids=["after"])

    async def both() -> bool:
        return await seen(client) == 2

    await eventually(both, within=60)

    async def nothing_waits() -> bool:
        answer = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent=PARENT))
        return not any(f.lag_events or f.HasField("waiting_since") for f in answer.freshness)

    # One partition ends with a poison record.
    await eventually(nothing_waits, within=30)
    consumer = AIOKafkaConsumer(
        dead_letter(topic_prefix + GROUP), bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        parked: list[Any] = []
        async with asyncio.timeout(20):
            while len(parked) < 2:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    parked += records
    finally:
        await consumer.stop()
    assert {b"\xff\xfenot an event"} == {record.value for record in parked}
    assert {b"poison"} == {record.key for record in parked}


@pytest.mark.timeout(120)
async def test_features_are_served_and_readiness_holds_while_postgresql_is_down(
    client: fw.Client, server: Server, postgres: Postgres
) -> None:
    await apply(client)
    await push_weight(client, 0, 2.5, pb.PUSH_TARGET_ONLINE)
    assert 2.5 == await weight(client)
    await asyncio.to_thread(postgres.kill)
    loop = asyncio.get_running_loop()
    end = loop.time() + 4.0
    # Readiness is checked every second.
    while loop.time() < end:
        assert SERVING == server.health.status()
        assert 2.5 == await weight(client)
        await asyncio.sleep(0.05)
    assert 2.5 == await weight(client, "same"), "a feature set that was not read before"
    definitions = fw.compile_definitions([fw.Entity("pilot", {"name": fw.STRING})], "default")
    for call, request in (
        (client.feature.ApplyDefinitions, pb.ApplyDefinitionsRequest(parent=PARENT, definitions=definitions)),
        (client.feature.ListViews, pb.ListViewsRequest(parent=PARENT)),
        (client.feature.MaterializeView, pb.MaterializeViewRequest(view=f"{PARENT}/views/facts")),
    ):
        with pytest.raises(Unavailable) as refused:
            await call(request, timeout=5.0)
        assert "POSTGRES_UNAVAILABLE" == refused.value.reason
    assert SERVING == server.health.status()
    await asyncio.to_thread(postgres.restart)

    async def applied() -> bool:
        with suppress(Unavailable):
            await client.apply(definitions)
            return True
        return False

    await eventually(applied, within=30)
    listed = await client.feature.ListEntities(pb.ListEntitiesRequest(parent=PARENT))
    assert [f"{PARENT}/entities/pilot", f"{PARENT}/entities/plane"] == [e.name for e in listed.entities]
    assert 2.5 == await weight(client)


async def test_reads_and_pushes_are_refused_in_time_while_redis_hangs(
    client: fw.Client, redis: Redis
) -> None:
    await apply(client)
    await push_weight(client, 0, 1.0, pb.PUSH_TARGET_ONLINE)
    columns = pb.GetOnlineFeaturesRequest(
        feature_set=f"{PARENT}/featureSets/heavy", entities=to_table({"tailnum": ["N1"]})
    )
    rows = pb.GetOnlineFeaturesRequest()
    rows.CopyFrom(columns)
    rows.layout = pb.ANSWER_LAYOUT_ROWS
    push = client.push_request(
        "views/facts",
        {"tailnum": ["N1"], "at": [T0], "weight": [9.0]},
        SCHEMA,
        to=pb.PUSH_TARGET_ONLINE,
    )
    assert redis.process is not None
    redis.process.signal(signal.SIGSTOP)
    try:
        calls = [
            *(client.feature.GetOnlineFeatures(r, timeout=1.0) for r in (columns, columns, rows)),
            client.feature.GetFreshness(pb.GetFreshnessRequest(parent=PARENT), timeout=1.0),
            client.feature.PushFeatures(push, timeout=1.0),
        ]
        refused = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        redis.process.signal(signal.SIGCONT)
    assert [(Unavailable, "ONLINE_STORE_DOWN")] * 5 == [(type(r), getattr(r, "reason", r)) for r in refused]

    async def answered() -> bool:
        with suppress(Unavailable):
            # Redis may have taken the row; a second push has no effect then.
            await client.feature.PushFeatures(push, timeout=4.0)
            return True
        return False

    await eventually(answered, within=20)
    assert 9.0 == await weight(client)


@pytest.mark.timeout(180)
async def test_events_are_refused_in_time_and_rows_accepted_while_kafka_is_down(
    client: fw.Client, workers: Any, kafka: Kafka
) -> None:
    await apply(client)
    workers.start()
    await client.push("weighings", ROWS, SCHEMA, ids=["before"])

    async def counted(wanted: int) -> bool:
        return await seen(client) == wanted

    await eventually(lambda: counted(1), within=60)
    await asyncio.to_thread(kafka.kill)
    event = client.push_request("weighings", ROWS, SCHEMA, ids=["meanwhile"])
    for _ in range(2):
        with pytest.raises(Unavailable) as refused:
            await client.feature.PushFeatures(event, timeout=3.0)
        assert "KAFKA_UNAVAILABLE" == refused.value.reason
    for hour, target in enumerate(TARGETS):
        await push_weight(client, hour, float(hour), target)
    assert 2.0 == await weight(client)
    assert await counted(1)
    await asyncio.to_thread(kafka.restart)

    async def taken() -> bool:
        # Kafka may have the event already; it is applied once because of its id.
        with suppress(Unavailable):
            await client.feature.PushFeatures(event, timeout=10.0)
            return True
        return False

    await eventually(taken, within=60)
    await eventually(lambda: counted(2), within=60)
    await client.push("weighings", ROWS, SCHEMA, ids=["after"])
    await eventually(lambda: counted(3), within=60)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("harm", ["killed", "stalled"])
async def test_a_durable_row_is_written_nowhere_while_s3_is_down(
    client: fw.Client, s3: S3, database: str, harm: str
) -> None:
    await apply(client)
    assert s3.process is not None
    if harm == "killed":
        await asyncio.to_thread(s3.kill)
    else:
        s3.process.signal(signal.SIGSTOP)
    await push_weight(client, 0, 1.0, pb.PUSH_TARGET_ONLINE)
    for target in (pb.PUSH_TARGET_OFFLINE, pb.PUSH_TARGET_ONLINE_AND_OFFLINE, pb.PUSH_TARGET_UNSPECIFIED):
        with pytest.raises(Unavailable) as refused:
            await push_weight(client, 1, 2.0, target)
        assert "OBJECT_STORE_DOWN" == refused.value.reason
    assert 1.0 == await weight(client)
    async with create_pool(database) as pool:
        log = PostgresPushLog(pool)
        assert [] == await log.keys("default", "facts")
        if harm == "killed":
            await asyncio.to_thread(s3.restart)
        else:
            s3.process.signal(signal.SIGCONT)

        async def taken() -> bool:
            with suppress(Unavailable):
                await push_weight(client, 2, 3.0, pb.PUSH_TARGET_ONLINE_AND_OFFLINE)
                return True
            return False

        await eventually(taken, within=60)
        assert 1 == len(await log.keys("default", "facts"))
    assert 3.0 == await weight(client)


@pytest.mark.timeout(240)
async def test_jobs_wait_for_s3_and_leave_no_partial_files(
    client: fw.Client, s3: S3, bucket: str, tables: S3Tables, database: str
) -> None:
    tables.write(f"s3://{bucket}/weights/1.parquet", pl.DataFrame(ROWS))
    await apply(client, bucket)
    await asyncio.to_thread(s3.kill)
    source = ts.SourceSpine(source=f"{PARENT}/sources/weights", timestamp_field="at", label="weight > 1")
    source.start_time.FromDatetime(T0)
    source.end_time.FromDatetime(T0 + timedelta(days=1))
    build = pb.BuildTrainingSetRequest(
        parent=PARENT,
        training_set_id="march",
        feature_set=f"{PARENT}/featureSets/heavy",
        spine=ts.Spine(source=source),
    )
    file = ts.FileSpine(uri=f"s3://{bucket}/weights/1.parquet", timestamp_field="at", label_field="weight")
    of_file = pb.BuildTrainingSetRequest(
        parent=PARENT, feature_set=f"{PARENT}/featureSets/heavy", spine=ts.Spine(file=file)
    )
    with pytest.raises(Unavailable) as refused:
        await client.feature.BuildTrainingSet(of_file, timeout=4.0)
    assert "OBJECT_STORE_DOWN" == refused.value.reason
    materialize = pb.MaterializeViewRequest(view=f"{PARENT}/views/facts")
    jobs = [
        (await client.feature.MaterializeView(materialize)).job.name,
        (await client.feature.BuildTrainingSet(build)).job.name,
    ]

    async def states() -> set[int]:
        return {(await client.feature.GetJob(pb.GetJobRequest(name=name))).job.state for name in jobs}

    async with create_pool(database) as pool:

        async def tried_again() -> bool:
            return bool(await pool.fetchval("SELECT min(attempt) >= 2 FROM job"))

        await eventually(tried_again, within=90)
    assert await states() <= {job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING}
    assert await weight(client) is None
    sets = pb.ListTrainingSetsRequest(parent=PARENT)
    assert [] == list((await client.feature.ListTrainingSets(sets)).training_sets)
    await asyncio.to_thread(s3.restart)

    async def done() -> bool:
        return await states() == {job_pb2.JOB_STATE_SUCCEEDED}

    await eventually(done, within=90)
    assert 2.5 == await weight(client)
    (built,) = (await client.feature.ListTrainingSets(sets)).training_sets
    assert 1 == built.row_count
    written = [
        file.uri for file in tables.snapshot(f"s3://{bucket}/training-sets/", TableFormat.PARQUET).files
    ]
    assert written
    assert all(uri.startswith(built.uri) for uri in written)
