"""Training-set jobs that meet broken files, are cancelled, or lose their process: one set or none, and no file beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.fs as fs
import pytest

import flywheel as fw
from flywheel_common.clock import SystemClock
from flywheel_common.errors import FlywheelError
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
from tests.support.eventually import eventually

START = datetime(2013, 1, 1, tzinfo=UTC)
PARENT = "projects/default"


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


@pytest.fixture
def tables(s3: S3, bucket: str) -> S3Tables:
    return S3Tables(endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket)


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


def asked(spine: ts.Spine, training_set_id: str, feature_set: str = "winds") -> pb.BuildTrainingSetRequest:
    return pb.BuildTrainingSetRequest(
        parent=PARENT,
        training_set_id=training_set_id,
        feature_set=f"{PARENT}/featureSets/{feature_set}",
        spine=spine,
        request_id=training_set_id,
    )


async def job_of(client: fw.Client, name: str) -> pb.Job:
    return (await client.feature.GetJob(pb.GetJobRequest(name=name))).job


async def ended(client: fw.Client, name: str, within: float = 30) -> pb.Job:
    over = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)

    async def check() -> pb.Job | None:
        job = await job_of(client, name)
        return job if job.state in over else None

    job: pb.Job = await eventually(check, within=within)
    return job


async def sets(client: fw.Client) -> list[ts.TrainingSet]:
    return list(
        (await client.feature.ListTrainingSets(pb.ListTrainingSetsRequest(parent=PARENT))).training_sets
    )


@pytest.mark.parametrize("harm", ["empty", "half", "zeros"])
async def test_a_broken_file_among_good_ones_fails_the_job_by_its_name_and_leaves_nothing(
    client: fw.Client, tables: S3Tables, bucket: str, harm: str
) -> None:
    spine = write_inputs(tables, bucket, 10)
    await client.apply(definitions(bucket))
    path = f"{bucket}/weather/part-1.parquet"
    whole = tables._fs.open_input_file(path).read()
    broken = {"empty": b"", "half": whole[: len(whole) // 2], "zeros": whole[:4] + bytes(60) + whole[64:]}
    with tables._fs.open_output_stream(path) as stream:
        stream.write(broken[harm])
    started = await client.feature.BuildTrainingSet(asked(spine, "broken"))
    job = await ended(client, started.job.name)
    assert (job_pb2.JOB_STATE_FAILED, "CORRUPT_TABLE") == (job.state, job.error_reason)
    assert "weather/part-1.parquet" in job.error_message
    assert [] == await sets(client)
    assert [] == files(tables, bucket)
    # Everything else goes on: mended, the same name can be built.
    with tables._fs.open_output_stream(path) as stream:
        stream.write(whole)
    again = asked(spine, "broken")
    again.request_id = "again"
    job = await ended(client, (await client.feature.BuildTrainingSet(again)).job.name)
    assert job_pb2.JOB_STATE_SUCCEEDED == job.state, job.error_message


class Vanishing(S3Tables):
    """A writer removes a file after the table was listed."""

    def snapshot(self, *args: Any, **kwargs: Any) -> Any:
        found = super().snapshot(*args, **kwargs)
        if "weather" in args[0]:
            self._deletion.delete([found.files[-1].uri.removeprefix("s3://")])
        return found


class Told:
    """A job that hears what it tells."""

    def __init__(self, hear: Callable[[str], None] = lambda message: None) -> None:
        self.checkpoint = b""
        self.percents: list[int] = []
        self._hear = hear

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        assert (100, "%") == (total, unit)
        self.percents.append(done)
        self._hear(message)

    def check_cancelled(self) -> None:
        pass

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        self.checkpoint = checkpoint


class Builds:
    """The use case over a real S3, with definitions as the service keeps them."""

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


async def test_a_file_that_vanishes_while_it_is_read_is_named(
    current: Any, tables: S3Tables, s3: S3, bucket: str
) -> None:
    spine = write_inputs(tables, bucket, 10)
    vanishing = Vanishing(
        endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
    )
    builds = Builds(current, vanishing, spine)
    with pytest.raises(Exception, match=r"weather/part-2.parquet went away") as changed:
        await builds.builder.build(builds.request("gone"), Told())
    assert "TABLE_CHANGED" == changed.value.reason  # type: ignore[attr-defined]
    assert [] == files(tables, bucket)


async def test_a_build_cancelled_while_it_writes_leaves_no_file_and_no_set(
    current: Any, tables: S3Tables, bucket: str
) -> None:
    builds = Builds(current, tables, write_inputs(tables, bucket, 600_000))
    seen: list[list[str]] = []

    def cancel_in_part_one(message: str) -> None:
        if message.startswith("writing part 1"):
            seen.append(files(tables, bucket))
            building.cancel()

    building = asyncio.ensure_future(
        builds.builder.build(builds.request("stopped"), Told(cancel_in_part_one))
    )
    with pytest.raises(asyncio.CancelledError):
        await building
    assert 1 == len(seen[0])
    assert [] == files(tables, bucket)
    assert await builds.registered.get("default", "stopped") is None


async def test_what_a_killed_attempt_left_goes_when_the_set_is_registered_and_progress_never_falls(
    current: Any, tables: S3Tables, bucket: str
) -> None:
    builds = Builds(current, tables, write_inputs(tables, bucket, 300_000))
    left = f"s3://{bucket}/training-sets/default/whole/0123-dead/part-00000.parquet"
    tables.write(left, pl.DataFrame({"half": [1]}))
    other = f"s3://{bucket}/training-sets/default/whole-other/0123-alive/part-00000.parquet"
    tables.write(other, pl.DataFrame({"whole": [1]}))
    job = Told()
    built = await builds.builder.build(builds.request("whole"), job, reached=20)
    parts = [f"{built.uri}part-0000{i}.parquet" for i in range(2)]
    assert sorted([other, *parts]) == [f"s3://{f}" for f in files(tables, bucket)]
    assert 300_000 == tables.read(built.uri, ["label"]).height
    assert (20, 100) == (job.percents[0], job.percents[-1])
    assert sorted(job.percents) == job.percents


async def test_a_running_job_is_cancelled_and_builds_nothing(
    client: fw.Client, tables: S3Tables, bucket: str
) -> None:
    spine = write_inputs(tables, bucket, 10)
    await client.apply(definitions(bucket))
    rows = {"origin": ["JFK"], "landed": [at(1)], "delay": [1.0]}
    schema = {"origin": fw.STRING, "landed": fw.TIMESTAMP, "delay": fw.FLOAT64}
    await client.push("landings", rows, schema, ids=["one"])
    # Nobody archives the event, so the job waits for it.
    started = await client.feature.BuildTrainingSet(asked(spine, "stopped", "both"))

    async def waits() -> bool:
        return "waiting for 1 events" in (await job_of(client, started.job.name)).progress.message

    await eventually(waits, within=20)
    await client.feature.CancelJob(pb.CancelJobRequest(name=started.job.name))
    job = await ended(client, started.job.name)
    assert job_pb2.JOB_STATE_CANCELLED == job.state
    assert [] == await sets(client)
    assert [] == files(tables, bucket)


@pytest.fixture
def serve(environment: dict[str, str], free_port: Callable[[], int], tmp_path: Path) -> Iterator[Any]:
    """Starts the service as a process of its own; answers it and its address."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[subprocess.Popen[bytes], str]:
        address = f"127.0.0.1:{free_port()}"
        with (tmp_path / f"serve-{len(running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flywheel_feature", "serve"],
                env={**os.environ, **environment, "FLYWHEEL_FEATURE_LISTEN": address},
                stdout=log,
                stderr=log,
            )
        running.append(process)
        return process, address

    yield start
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


async def reached(client: fw.Client) -> bool:
    with suppress(FlywheelError):
        await client.feature.ListJobs(pb.ListJobsRequest(parent=PARENT))
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_process_killed_while_it_writes_is_followed_by_another_and_there_is_one_set(
    serve: Any, tables: S3Tables, bucket: str
) -> None:
    spine = write_inputs(tables, bucket, 2_000_000)
    first, address = serve()
    percents: list[int] = []
    async with fw.Client(feature=address) as client:
        await eventually(lambda: reached(client), within=30)
        await client.apply(definitions(bucket))
        started = (await client.feature.BuildTrainingSet(asked(spine, "big"))).job
        while not files(tables, bucket):
            percents.append((await job_of(client, started.name)).progress.done)
            await asyncio.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.wait()
    half = files(tables, bucket)
    _, address = serve()
    async with fw.Client(feature=address) as client:
        await eventually(lambda: reached(client), within=30)
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
        again = (await client.feature.BuildTrainingSet(asked(spine, "again"))).job
        assert (
            job_pb2.JOB_STATE_SUCCEEDED == (await ended(client, again.name, within=LEASE_SECONDS * 2)).state
        )
        assert {built.content_hash} == {s.content_hash for s in await sets(client)}
    assert sorted(percents) == percents
    assert 100 == percents[-1]
