"""Online answers equal the training data, as the skew check confirms."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import polars as pl
import pytest
from google.protobuf import text_format
from prometheus_client import REGISTRY

from flywheel_common.columns import from_numpy, from_texts, to_numpy, to_table
from flywheel_common.errors import NotFound
from flywheel_common.grpc.channel import channel
from flywheel_common.process.worker import Worker
from flywheel_feature.config import FeatureSettings, MaterializeSettings
from flywheel_feature.server import build, build_worker
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.kafka import Kafka
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1.feature_pb2_grpc import FeatureServiceStub
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.servers.feature import PARENT, s3_tables

START = datetime(2013, 1, 1, tzinfo=UTC)
UTC_US = pl.Datetime("us", "UTC")
DEFINITIONS = """
entities { name: "projects/default/entities/origin" join_keys { name: "origin" data_type: DATA_TYPE_STRING } }
sources {
  name: "projects/default/sources/weather" timestamp_field: "hour" parquet { uri: "s3://BUCKET/weather/" }
  schema { name: "origin" data_type: DATA_TYPE_STRING } schema { name: "hour" data_type: DATA_TYPE_TIMESTAMP }
  schema { name: "wind" data_type: DATA_TYPE_FLOAT64 }
}
sources {
  name: "projects/default/sources/landings" timestamp_field: "landed" stream { partitions: 2 }
  schema { name: "origin" data_type: DATA_TYPE_STRING }
  schema { name: "landed" data_type: DATA_TYPE_TIMESTAMP }
  schema { name: "scheduled" data_type: DATA_TYPE_TIMESTAMP }
  schema { name: "distance" data_type: DATA_TYPE_INT64 }
  schema { name: "delay" data_type: DATA_TYPE_FLOAT64 }
}
sources {
  name: "projects/default/sources/request" request {} schema { name: "distance" data_type: DATA_TYPE_INT64 }
}
views {
  name: "projects/default/views/weather" entity: "projects/default/entities/origin"
  batch { source: "projects/default/sources/weather" features { name: "wind" data_type: DATA_TYPE_FLOAT64 } }
}
views {
  name: "projects/default/views/traffic" entity: "projects/default/entities/origin"
  stream {
    source: "projects/default/sources/landings" filter: "distance > 0"
    aggregations { function: AGGREGATION_FUNCTION_COUNT window { seconds: 10800 } }
    aggregations { function: AGGREGATION_FUNCTION_MEAN field: "delay" window { seconds: 10800 } }
    aggregations { function: AGGREGATION_FUNCTION_STD field: "delay" window { seconds: 86400 } }
    aggregations { function: AGGREGATION_FUNCTION_LAST field: "delay" window { seconds: 86400 } }
  }
}
views {
  name: "projects/default/views/computed"
  on_demand {
    views: "projects/default/views/weather" views: "projects/default/views/traffic"
    request_sources: "projects/default/sources/request"
    expressions {
      feature { name: "strain" data_type: DATA_TYPE_FLOAT32 }
      sql: "weather__wind * distance + COALESCE(traffic__mean_delay_3h, 0)"
    }
  }
}
feature_sets {
  name: "projects/default/featureSets/flights"
  features: "weather:*" features: "traffic:*" features: "computed:strain"
}
"""


def micros(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000


def timestamps(moments: list[datetime]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([micros(m) for m in moments], np.int64)


@dataclass
class Platform:
    stub: FeatureServiceStub
    tables: S3Tables
    bucket: str

    async def job(self, job: pb.Job) -> pb.Job:
        """The job when it has succeeded."""
        async for answer in self.stub.WatchJob(pb.WatchJobRequest(name=job.name)):
            job = answer.job
        assert job_pb2.JOB_STATE_SUCCEEDED == job.state, (job.error_reason, job.error_message)
        return job

    async def applied(self, wanted: list[pb.AppliedOffset]) -> bool:
        answer = await self.stub.GetFreshness(pb.GetFreshnessRequest(parent=PARENT))
        reached = {(a.source, a.partition): a.next_offset for f in answer.freshness for a in f.applied}
        return all(reached.get((w.source, w.partition), 0) >= w.next_offset for w in wanted)


@pytest.fixture
async def platform(
    database: str, redis_url: str, s3: S3, kafka: Kafka, topic_prefix: str
) -> AsyncIterator[Platform]:
    values = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.05,
        "log_rpcs": False,
        "postgres_dsn": database,
        "redis_url": redis_url,
        "kafka_bootstrap": kafka.bootstrap,
        "s3_endpoint": s3.endpoint,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
        "s3_bucket": f"{topic_prefix.strip('.')}-features",
        "topic_prefix": topic_prefix,
        "archive_idle_seconds": 0.3,
    }
    async with AsyncExitStack() as stack:
        server = await build(FeatureSettings(**values), stack)
        worker = await build_worker(MaterializeSettings(**values), stack)
        for process in (server, worker):
            running = asyncio.create_task(process.run_until_signal())
            stack.push_async_callback(_end, process, running)

        await eventually(lambda: server.port, within=10)
        opened = await stack.enter_async_context(channel(f"127.0.0.1:{server.port}", client_name="test"))
        bucket = str(values["s3_bucket"])
        yield Platform(FeatureServiceStub(opened), s3_tables(s3, bucket), bucket)


async def _end(process: Worker, running: asyncio.Task[None]) -> None:
    process.request_stop()
    await running


def landings(count: int) -> list[tuple[str, datetime, datetime, int, float | None]]:
    """Flights in the order in which they land."""
    chance = random.Random(7)
    rows = []
    for _ in range(count):
        scheduled = START + timedelta(minutes=chance.randrange(0, 2880))
        landed = scheduled + timedelta(minutes=chance.randrange(60, 300))
        delay = None if chance.random() < 0.1 else round(chance.gauss(10, 40), 1)
        rows.append((chance.choice(["JFK", "LGA"]), landed, scheduled, chance.choice([0, 500, 2500]), delay))
    return sorted(rows, key=lambda r: r[1])


async def push(
    platform: Platform, rows: list[tuple[str, datetime, datetime, int, float | None]], *, wait: bool = True
) -> None:
    delays = [r[4] for r in rows]
    table = to_table(
        [
            from_texts("origin", [r[0] for r in rows]),
            from_numpy("landed", timestamps([r[1] for r in rows]), data_type=7),
            from_numpy("scheduled", timestamps([r[2] for r in rows]), data_type=7),
            from_numpy("distance", np.array([r[3] for r in rows], np.int64)),
            from_numpy(
                "delay", np.array([d or 0.0 for d in delays]), np.array([d is not None for d in delays])
            ),
        ]
    )
    answer = await platform.stub.PushFeatures(
        pb.PushFeaturesRequest(
            target=f"{PARENT}/sources/landings", rows=table, event_ids=[f"{r[1]}{r[2]}{r[0]}" for r in rows]
        )
    )

    if wait:
        await eventually(lambda: platform.applied(list(answer.offsets)), within=30)


async def replay(platform: Platform) -> tuple[pl.DataFrame, int]:
    """Push flights and read features in event order; returns the log and the number of flights."""
    flights = landings(240)
    asked = sorted(
        (START + timedelta(hours=h, minutes=7 * h % 60), o)
        for h in range(3, 50, 4)
        for o in ("JFK", "LGA", "EWR")
    )
    log: list[dict[str, object]] = []
    done = 0
    for number, (moment, origin) in enumerate(asked):
        due = sum(f[1] <= moment for f in flights)
        if due > done:
            await push(platform, flights[done:due])
            done = due
        request = pb.GetOnlineFeaturesRequest(feature_set=f"{PARENT}/featureSets/flights")
        request.entities.CopyFrom(to_table([from_texts("origin", [origin])]))
        request.request_fields.CopyFrom(
            to_table([from_numpy("distance", np.array([900 + number], np.int64))])
        )
        request.as_of.FromDatetime(moment)
        answer = await platform.stub.GetOnlineFeatures(request)
        row: dict[str, object] = {
            "prediction_id": f"p{number:03d}",
            "event_time": moment,
            "model_version": "m",
            "release": "r",
            "role": "CHAMPION",
            "feature_set": answer.feature_set,
            "entity__origin": origin,
            "request__distance": 900 + number,
        }
        for column in answer.features.columns:
            values, valid = to_numpy(column, 1)
            row[column.name] = float(values[0]) if valid[0] else None
        log.append(row)
    await push(platform, flights[done:])
    frame = pl.DataFrame(log, infer_schema_length=None, schema_overrides={"event_time": UTC_US})
    return frame, len(flights)


@pytest.mark.timeout(180)
async def test_online_answers_are_recomputed_offline_without_mismatch(platform: Platform) -> None:
    weather = pl.DataFrame(
        {
            "origin": ["JFK", "LGA", "JFK"],
            "hour": [START, START, START + timedelta(hours=2)],
            "wind": [3.5, 7.25, 4.5],
        },
        schema={"origin": pl.String, "hour": UTC_US, "wind": pl.Float64},
    )

    def written() -> bool:
        with suppress(NotFound):
            platform.tables.write(f"s3://{platform.bucket}/weather/part-0.parquet", weather)
            return True
        return False  # the service has not created its bucket yet

    await eventually(written, within=10)
    definitions = text_format.Parse(
        DEFINITIONS.replace("BUCKET", platform.bucket), pb.ApplyDefinitionsRequest().definitions
    )
    await platform.stub.ApplyDefinitions(pb.ApplyDefinitionsRequest(parent=PARENT, definitions=definitions))
    request = pb.MaterializeViewRequest(view=f"{PARENT}/views/weather")
    request.end_time.FromDatetime(START + timedelta(hours=3))
    await platform.job((await platform.stub.MaterializeView(request)).job)

    log, flights = await replay(platform)
    assert log["traffic__count_3h"].null_count() < log.height / 2
    platform.tables.write(f"s3://{platform.bucket}/predictions/part-0.parquet", log)
    check = pb.CheckSkewRequest(parent=PARENT, predictions_uri=f"s3://{platform.bucket}/predictions/")
    report = (await platform.job((await platform.stub.CheckSkew(check)).job)).skew_report
    assert [] == [e for f in report.features for e in f.examples]
    assert (log.height, log.height * 6, 0) == (report.predictions, report.values, report.mismatches)

    platform.tables.write(
        f"s3://{platform.bucket}/predictions/part-0.parquet", log.with_columns(pl.col("weather__wind") + 0.5)
    )
    again = (await platform.job((await platform.stub.CheckSkew(check)).job)).skew_report
    assert {"weather__wind"} == {f.feature for f in again.features if f.mismatch_count}

    await build_twice(platform, flights)


async def read_features(
    platform: Platform, number: int, moment: datetime, origins: list[str]
) -> list[dict[str, object]]:
    """Read features; returns the rows of the prediction log."""
    request = pb.GetOnlineFeaturesRequest(
        feature_set=f"{PARENT}/featureSets/flights", with_applied_offsets=True
    )
    request.entities.CopyFrom(to_table([from_texts("origin", origins)]))
    request.request_fields.CopyFrom(to_table([from_numpy("distance", np.full(len(origins), 900))]))
    request.as_of.FromDatetime(moment)
    answer = await platform.stub.GetOnlineFeatures(request)
    found = {
        prefix + column.name: to_numpy(column, len(origins))
        for prefix, table in (("", answer.features), ("applied__", answer.applied_offsets))
        for column in table.columns
    }
    return [
        {
            "prediction_id": f"p{number:03d}-{origin}",
            "event_time": moment,
            "feature_set": answer.feature_set,
            "entity__origin": origin,
            "request__distance": 900,
            **{name: values[i].tolist() if valid[i] else None for name, (values, valid) in found.items()},
        }
        for i, origin in enumerate(origins)
    ]


@pytest.mark.timeout(180)
async def test_answers_of_a_lagging_stream_are_recomputed_without_mismatch(
    platform: Platform,
) -> None:
    text = DEFINITIONS.replace(
        'features: "weather:*" features: "traffic:*" features: "computed:strain"', 'features: "traffic:*"'
    )
    definitions = text_format.Parse(
        text.replace("BUCKET", platform.bucket), pb.ApplyDefinitionsRequest().definitions
    )
    await platform.stub.ApplyDefinitions(pb.ApplyDefinitionsRequest(parent=PARENT, definitions=definitions))
    flights = landings(400)
    chance = random.Random(3)
    # A tenth arrives up to a hundred places late, the rest in order; reads do not wait for the stream.
    arriving = [
        flight
        for _, flight in sorted(
            ((i + (chance.randrange(100) if chance.random() < 0.1 else 0)), f) for i, f in enumerate(flights)
        )
    ]
    log: list[dict[str, object]] = []
    for number, done in enumerate(range(0, len(arriving), 10)):
        await push(platform, arriving[done : done + 10], wait=False)
        moment = max(f[1] for f in arriving[: done + 10])
        log += await read_features(platform, number, moment, ["JFK", "LGA", "EWR"])
    await push(platform, arriving[-10:])
    log += await read_features(platform, 999, flights[-1][1], ["JFK", "LGA", "EWR"])
    frame = pl.DataFrame(
        log,
        infer_schema_length=None,
        schema_overrides={"event_time": UTC_US, "applied__traffic@1": pl.List(pl.Int64)},
    )
    uri = f"s3://{platform.bucket}/predictions/"
    platform.tables.write(f"{uri}part-0.parquet", frame)
    check = pb.CheckSkewRequest(parent=PARENT, predictions_uri=uri)
    report = (await platform.job((await platform.stub.CheckSkew(check)).job)).skew_report
    assert [] == [e for f in report.features for e in f.examples]
    counts = report.predictions, report.exact_predictions, report.values, report.mismatches
    assert (len(log), len(log), len(log) * 4, 0) == counts
    assert frame["applied__traffic@1"].list.len().max() == 2

    # By event time alone, lag looks like skew; with offsets in a part of the log, that part is exact.
    platform.tables.write(f"{uri}part-0.parquet", frame.drop("applied__traffic@1"))
    lagging = (await platform.job((await platform.stub.CheckSkew(check)).job)).skew_report
    assert 0 == lagging.exact_predictions
    assert 0 < lagging.mismatches
    half = pl.when(pl.col("entity__origin") == "JFK").then("applied__traffic@1").alias("applied__traffic@1")
    wrong = frame.with_columns(half, pl.col("traffic__count_3h") + (pl.col("entity__origin") == "JFK"))
    platform.tables.write(f"{uri}part-0.parquet", wrong)
    found = (await platform.job((await platform.stub.CheckSkew(check)).job)).skew_report
    assert len(log) // 3 == found.exact_predictions
    count_skew = {f.feature: f for f in found.features}["traffic__count_3h"]
    served = wrong.filter(pl.col("entity__origin") == "JFK")["traffic__count_3h"]
    assert count_skew.mismatch_count >= len(served) - served.null_count()
    assert metrics()["traffic__count_3h", "mismatch"] >= count_skew.mismatch_count


def metrics() -> dict[tuple[str, str], float]:
    """Number of checked values by (feature, result)."""
    return {
        (sample.labels["feature"], sample.labels["result"]): sample.value
        for metric in REGISTRY.collect()
        if metric.name == "flywheel_feature_skew_values"
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


async def build_twice(platform: Platform, flights: int) -> None:
    wanted = pb.BuildTrainingSetRequest(
        parent=PARENT, feature_set=f"{PARENT}/featureSets/flights", request_id="first"
    )
    spine = wanted.spine.source
    spine.source, spine.timestamp_field, spine.label = (
        f"{PARENT}/sources/landings",
        "scheduled",
        "delay >= 15",
    )
    spine.start_time.FromDatetime(START)
    spine.end_time.FromDatetime(START + timedelta(days=3))
    first = await platform.stub.BuildTrainingSet(wanted)
    repeated = await platform.stub.BuildTrainingSet(wanted)
    assert first.job.name == repeated.job.name
    job = await platform.job(first.job)
    built = (await platform.stub.GetTrainingSet(pb.GetTrainingSetRequest(name=job.training_set))).training_set
    assert flights == built.row_count + built.unlabelled_count
    assert 0 < built.label_mean < 1
    wanted.request_id = "second"
    second = await platform.job((await platform.stub.BuildTrainingSet(wanted)).job)
    other = (
        await platform.stub.GetTrainingSet(pb.GetTrainingSetRequest(name=second.training_set))
    ).training_set
    assert built.name != other.name
    assert built.content_hash == other.content_hash
    listed = await platform.stub.ListTrainingSets(pb.ListTrainingSetsRequest(parent=PARENT, page_size=1))
    assert [other.name] == [t.name for t in listed.training_sets]
    rest = pb.ListTrainingSetsRequest(parent=PARENT, page_size=1, page_token=listed.next_page_token)
    assert [built.name] == [t.name for t in (await platform.stub.ListTrainingSets(rest)).training_sets]
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await platform.stub.GetTrainingSet(pb.GetTrainingSetRequest(name=f"{PARENT}/trainingSets/none"))
    assert grpc.StatusCode.NOT_FOUND == absent.value.code()
