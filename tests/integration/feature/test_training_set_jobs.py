"""Training set jobs with broken files, cancellations and killed processes leave one set or none."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow.fs as fs
import pytest

import flywheel as fw
from flywheel_common.clock import SystemClock
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.jobs.runner import LEASE_SECONDS
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import FileSpine, TrainingSetRequest
from flywheel_feature.store.postgres.definitions import PostgresDefinitions
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from flywheel_protos.types.v1 import job_pb2
from tests.support.builders.jobs import RecordingJob
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.servers.feature import PARENT, ServiceProcesses, answers, job_ended, job_of

START = datetime(2013, 1, 1, tzinfo=UTC)


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def files(tables: S3Tables, bucket: str, prefix: str = "training-sets") -> list[str]:
    found = tables._fs.get_file_info(
        fs.FileSelector(f"{bucket}/{prefix}", recursive=True, allow_not_found=True)
    )
    return sorted(f.path for f in found if f.type == fs.FileType.File)


def definitions(bucket: str) -> Any:
    origin = fw.Entity("origin", {"origin": fw.STRING})
    source = fw.ParquetSource(
        "weather",
        {"origin": fw.STRING, "hour": fw.TIMESTAMP, "wind": fw.FLOAT64},
        timestamp="hour",
        uri=f"s3://{bucket}/weather/",
    )
    landings = fw.StreamSource(
        "landings",
        {"origin": fw.STRING, "landed": fw.TIMESTAMP, "delay": fw.FLOAT64},
        timestamp="landed",
    )
    view = fw.BatchView("weather", origin, source, {"wind": fw.FLOAT64})
    traffic = fw.StreamView("traffic", origin, landings, [fw.count("3h", name="n")])
    sets = [
        fw.FeatureSet("winds", ["weather:wind"]),
        fw.FeatureSet("both", ["weather:wind", "traffic:n"]),
    ]
    return fw.compile_definitions([view, traffic, *sets], "default")


def write_inputs(tables: S3Tables, bucket: str, rows: int) -> ts.Spine:
    """Three files of weather and a spine of that many rows."""
    for part in range(3):
        frame = pl.DataFrame(
            {
                "origin": ["JFK", "LGA"],
                "hour": [at(part), at(part)],
                "wind": [1.0 + part, 10.0 + part],
            }
        )
        tables.write(f"s3://{bucket}/weather/part-{part}.parquet", frame)
    number = pl.int_range(rows, eager=True)
    spine = pl.DataFrame(
        {
            "origin": pl.select(
                pl.when(number % 2 == 0).then(pl.lit("JFK")).otherwise(pl.lit("LGA"))
            ).to_series(),
            "when": pl.select(pl.lit(at(1.5)) + pl.duration(seconds=number)).to_series(),
            "y": number % 3,
        }
    )
    tables.write(f"s3://{bucket}/spines/one.parquet", spine)
    return ts.Spine(
        file=ts.FileSpine(uri=f"s3://{bucket}/spines/one.parquet", timestamp_field="when", label_field="y")
    )


def build_request(
    spine: ts.Spine, training_set_id: str, feature_set: str = "winds"
) -> pb.BuildTrainingSetRequest:
    return pb.BuildTrainingSetRequest(
        parent=PARENT,
        training_set_id=training_set_id,
        feature_set=f"{PARENT}/featureSets/{feature_set}",
        spine=spine,
        request_id=training_set_id,
    )


async def sets(client: fw.Client) -> list[ts.TrainingSet]:
    return list(
        (await client.feature.ListTrainingSets(pb.ListTrainingSetsRequest(parent=PARENT))).training_sets
    )


@pytest.mark.parametrize("harm", ["empty", "half", "zeros"])
async def test_a_broken_file_fails_the_job_by_name_and_leaves_no_file(
    client: fw.Client, tables: S3Tables, bucket: str, harm: str
) -> None:
    spine = write_inputs(tables, bucket, 10)
    await client.apply(definitions(bucket))
    path = f"{bucket}/weather/part-1.parquet"
    content = tables._fs.open_input_file(path).read()
    half, zeros = content[: len(content) // 2], content[:4] + bytes(60) + content[64:]
    broken = {"empty": b"", "half": half, "zeros": zeros}
    with tables._fs.open_output_stream(path) as stream:
        stream.write(broken[harm])
    started = await client.feature.BuildTrainingSet(build_request(spine, "broken"))
    job = await job_ended(client, started.job.name)
    assert (job_pb2.JOB_STATE_FAILED, "CORRUPT_TABLE") == (job.state, job.error_reason)
    assert "weather/part-1.parquet" in job.error_message
    assert [] == await sets(client)
    assert [] == files(tables, bucket)
    # After the repair, a set of the same name can be built.
    with tables._fs.open_output_stream(path) as stream:
        stream.write(content)
    again = build_request(spine, "broken")
    again.request_id = "again"
    job = await job_ended(client, (await client.feature.BuildTrainingSet(again)).job.name)
    assert job_pb2.JOB_STATE_SUCCEEDED == job.state, job.error_message


class Vanishing(S3Tables):
    """Tables whose last file is removed after the table was listed."""

    def snapshot(self, *args: Any, **kwargs: Any) -> Any:
        found = super().snapshot(*args, **kwargs)
        if "weather" in args[0]:
            self._deletion.delete([found.files[-1].uri.removeprefix("s3://")])
        return found


class Builds:
    """Training set builds on S3."""

    def __init__(self, current: Callable[[str], Any], tables: S3Tables, spine: ts.Spine) -> None:
        self.registered = MemoryTrainingSets()
        self.builder = TrainingSetBuilder(
            catalogs=current,
            tables=tables,
            archive=MemoryArchive(),
            training_sets=self.registered,
            clock=SystemClock(),
        )
        self._spine = FileSpine(spine.file.uri, spine.file.timestamp_field, spine.file.label_field)

    def request(self, training_set_id: str) -> TrainingSetRequest:
        return TrainingSetRequest("default", training_set_id, "winds", 0, self._spine)


@pytest.fixture
async def current(client: fw.Client, bucket: str, database: str) -> Any:
    """Definitions of the project, applied through the service."""
    from flywheel_common.postgres.pool import create_pool

    await client.apply(definitions(bucket))
    async with create_pool(database, application_name="test") as pool:
        (catalog,) = await PostgresDefinitions(pool).changed({})

        async def answer(project: str) -> Catalog:
            return catalog

        yield answer


async def test_a_file_removed_while_it_is_read_is_named_in_the_error(
    current: Any, tables: S3Tables, s3: S3, bucket: str
) -> None:
    spine = write_inputs(tables, bucket, 10)
    vanishing = Vanishing.connect(
        endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
    )
    builds = Builds(current, vanishing, spine)
    with pytest.raises(Exception, match=r"weather/part-2.parquet was deleted") as changed:
        await builds.builder.build(builds.request("gone"), RecordingJob())
    assert "TABLE_CHANGED" == changed.value.reason  # type: ignore[attr-defined]
    assert [] == files(tables, bucket)


async def test_a_build_cancelled_while_writing_leaves_no_file_and_no_set(
    current: Any, tables: S3Tables, bucket: str
) -> None:
    builds = Builds(current, tables, write_inputs(tables, bucket, 600_000))
    seen: list[list[str]] = []

    def cancel_in_part_one(message: str) -> None:
        if message.startswith("writing part 1"):
            seen.append(files(tables, bucket))
            building.cancel()

    building = asyncio.ensure_future(
        builds.builder.build(builds.request("stopped"), RecordingJob(on_message=cancel_in_part_one))
    )
    with pytest.raises(asyncio.CancelledError):
        await building
    assert 1 == len(seen[0])
    assert [] == files(tables, bucket)
    assert await builds.registered.get("default", "stopped") is None


async def test_files_of_a_killed_attempt_are_removed_when_the_set_is_registered(
    current: Any, tables: S3Tables, bucket: str
) -> None:
    builds = Builds(current, tables, write_inputs(tables, bucket, 300_000))
    left = f"s3://{bucket}/training-sets/default/complete/0123-dead/part-00000.parquet"
    tables.write(left, pl.DataFrame({"half": [1]}))
    other = f"s3://{bucket}/training-sets/default/complete-other/0123-alive/part-00000.parquet"
    tables.write(other, pl.DataFrame({"other": [1]}))
    job = RecordingJob()
    built = await builds.builder.build(builds.request("complete"), job, reached=20)
    parts = [f"{built.uri}part-0000{i}.parquet" for i in range(2)]
    assert sorted([other, *parts]) == [f"s3://{f}" for f in files(tables, bucket)]
    assert 300_000 == tables.read(built.uri, ["label"]).height
    assert (20, 100) == (job.done[0], job.done[-1])
    assert sorted(job.done) == job.done
    assert ({100}, {"%"}) == ({total for _, total in job.progressed}, job.units)


async def test_a_cancelled_running_job_builds_nothing(
    client: fw.Client, tables: S3Tables, bucket: str
) -> None:
    spine = write_inputs(tables, bucket, 10)
    await client.apply(definitions(bucket))
    rows = {"origin": ["JFK"], "landed": [at(1)], "delay": [1.0]}
    schema = {"origin": fw.STRING, "landed": fw.TIMESTAMP, "delay": fw.FLOAT64}
    await client.push("landings", rows, schema, ids=["one"])
    # No worker archives the event, so the job waits for it.
    started = await client.feature.BuildTrainingSet(build_request(spine, "stopped", "both"))

    async def is_waiting() -> bool:
        return "waiting for 1 events" in (await job_of(client, started.job.name)).progress.message

    await eventually(is_waiting, within=20)
    await client.feature.CancelJob(pb.CancelJobRequest(name=started.job.name))
    job = await job_ended(client, started.job.name)
    assert job_pb2.JOB_STATE_CANCELLED == job.state
    assert [] == await sets(client)
    assert [] == files(tables, bucket)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_job_of_a_killed_process_is_finished_by_another_as_one_set(
    service_processes: ServiceProcesses, tables: S3Tables, bucket: str
) -> None:
    spine = write_inputs(tables, bucket, 2_000_000)
    port = free_port()
    first = service_processes.start(port)
    percents: list[int] = []
    async with fw.Client(feature=f"127.0.0.1:{port}") as client:
        await eventually(lambda: answers(client), within=30)
        await client.apply(definitions(bucket))
        started = (await client.feature.BuildTrainingSet(build_request(spine, "big"))).job
        while not files(tables, bucket):
            percents.append((await job_of(client, started.name)).progress.done)
            await asyncio.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.wait()
    half = files(tables, bucket)
    port = free_port()
    service_processes.start(port)
    async with fw.Client(feature=f"127.0.0.1:{port}") as client:
        await eventually(lambda: answers(client), within=30)
        assert job_pb2.JOB_STATE_RUNNING == (await job_of(client, started.name)).state
        while (job := await job_of(client, started.name)).state == job_pb2.JOB_STATE_RUNNING:
            percents.append(job.progress.done)
            await asyncio.sleep(0.05)
        assert job_pb2.JOB_STATE_SUCCEEDED == job.state, job.error_message
        percents.append(job.progress.done)
        (built,) = await sets(client)
        assert 2_000_000 == built.row_count
        parts = files(tables, bucket)
        assert [f"{built.uri}part-{i:05d}.parquet" for i in range(8)] == [f"s3://{p}" for p in parts]
        assert not set(half) & set(parts)
        again = (await client.feature.BuildTrainingSet(build_request(spine, "again"))).job
        assert (
            job_pb2.JOB_STATE_SUCCEEDED
            == (await job_ended(client, again.name, within=LEASE_SECONDS * 2)).state
        )
        assert {built.content_hash} == {s.content_hash for s in await sets(client)}
    assert sorted(percents) == percents
    assert 100 == percents[-1]
