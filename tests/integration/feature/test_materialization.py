"""Materialization through gRPC: late data, ranges, crashes, limits and broken files."""

from __future__ import annotations

import random
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.ingest.materialize_view import BATCH_ROWS
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.servers.feature import ServiceProcesses, answers, job_ended

T0 = datetime(2013, 3, 1, 12, tzinfo=UTC)
SCHEMA = {
    "tailnum": fw.STRING,
    "at": fw.TIMESTAMP,
    "known_at": fw.TIMESTAMP,
    "weight": fw.FLOAT64,
    "note": fw.STRING,
}
plane = fw.Entity("plane", {"tailnum": fw.STRING})

pytestmark = pytest.mark.timeout(120)


class Table:
    """The source `weights` and the view `facts` on it."""

    def __init__(self, tables: S3Tables, bucket: str) -> None:
        self.uri = f"s3://{bucket}/weights/"
        self.tables = tables

    def definitions(self) -> Any:
        source = fw.ParquetSource("weights", SCHEMA, timestamp="at", created="known_at", uri=self.uri)
        facts = fw.BatchView("facts", plane, source, {"weight": fw.FLOAT64, "note": fw.STRING})
        return fw.compile_definitions([facts, fw.FeatureSet("all", ["facts:*"])], "default")

    def write(
        self, file: str, *rows: tuple[str, float, float | None, str], known: float | None = None
    ) -> None:
        """(tailnum, hours after T0, weight, note)."""
        at = [T0 + timedelta(hours=r[1]) for r in rows]
        known_at = at if known is None else [T0 + timedelta(hours=known)] * len(rows)
        columns = ([r[0] for r in rows], at, known_at, [r[2] for r in rows], [r[3] for r in rows])
        frame = pl.DataFrame(dict(zip(SCHEMA, columns, strict=True)))
        self.tables.write(self.uri + file, frame.with_columns(pl.col("weight").cast(pl.Float64)))

    def write_many(self, file: str, rows: int, value: float, entities: int) -> None:
        number = pl.int_range(rows, eager=True)
        frame = pl.DataFrame({"n": number}).select(
            tailnum=pl.format("N{}", pl.col("n") % entities),
            at=pl.lit(T0) + pl.duration(seconds=pl.col("n")),
            known_at=pl.lit(T0) + pl.duration(seconds=pl.col("n")),
            weight=pl.lit(value) + pl.col("n"),
            note=pl.lit("x"),
        )
        self.tables.write(self.uri + file, frame)


@pytest.fixture
def table(tables: S3Tables, bucket: str) -> Table:
    return Table(tables, bucket)


async def weights(client: fw.Client, *tailnums: str) -> list[float | None]:
    answer = await client.online_features("all", {"tailnum": list(tailnums)}, as_of=T0 + timedelta(days=30))
    return list(to_dict(answer.features)["facts__weight"])


async def started(client: fw.Client, **changes: Any) -> pb.Job:
    request = pb.MaterializeViewRequest(view="projects/default/views/facts", **changes)
    return (await client.feature.MaterializeView(request)).job


async def test_a_late_row_with_an_old_event_time_is_materialized(client: fw.Client, table: Table) -> None:
    table.write("a.parquet", ("N1", 10, 1.0, ""), ("N2", 11, 2.0, ""))
    await client.apply(table.definitions())
    assert (await client.materialize("facts")).progress.done == 2
    # An old row of a new plane, and a row of N1 that is newer only by its created time.
    table.write("b.parquet", ("N3", -500, 3.0, ""))
    table.write("c.parquet", ("N1", 10, 1.5, "corrected"), known=99)
    assert (await client.materialize("facts")).progress.done == 2
    assert await weights(client, "N1", "N2", "N3") == [1.5, 2.0, 3.0]
    # No file is new, so none is read. Then a file is overwritten.
    assert (await client.materialize("facts")).progress.done == 0
    table.write("b.parquet", ("N3", -500, 3.0, ""), ("N4", -600, 4.0, ""))
    assert (await client.materialize("facts")).progress.done == 2
    assert await weights(client, "N3", "N4") == [3.0, 4.0]


async def test_of_rows_with_equal_times_the_last_in_file_order_wins(client: fw.Client, table: Table) -> None:
    table.write("a.parquet", ("N1", 1, 1.0, "first"), ("N1", 1, 2.0, "second"))
    await client.apply(table.definitions())
    await client.materialize("facts")
    assert await weights(client, "N1") == [2.0]
    table.write("b.parquet", ("N1", 1, 3.0, "third"))
    await client.materialize("facts")
    assert await weights(client, "N1") == [3.0]


async def test_the_latest_row_of_an_entity_wins_in_any_batch_of_a_file(
    client: fw.Client, table: Table
) -> None:
    """Each batch writes its latest row per entity;

    Redis keeps the latest by event time, created time, place.
    """
    chance = random.Random(17)
    rows, entities = 2 * BATCH_ROWS + 20_000, 300
    names = [f"N{chance.randrange(entities)}" for _ in range(rows)]
    # With few different times, many entities have equal latest times in several batches.
    at = [T0 + timedelta(hours=chance.randrange(100)) for _ in range(rows)]
    known = [t + timedelta(hours=chance.randrange(2)) for t in at]
    weights_of = [float(i) for i in range(rows)]
    columns = (names, at, known, weights_of, [""] * rows)
    table.tables.write(f"{table.uri}a.parquet", pl.DataFrame(dict(zip(SCHEMA, columns, strict=True))))
    best: dict[str, tuple[datetime, datetime, float]] = {}
    for name, *row in zip(names, at, known, weights_of, strict=True):
        best[name] = max(best.get(name, (T0 - timedelta(days=1), T0, 0.0)), (row[0], row[1], row[2]))
    batches = [int(place) // BATCH_ROWS for *_, place in best.values()]
    assert all(batches.count(batch) >= 20 for batch in range(3)), "every batch has winners"
    await client.apply(table.definitions())
    assert rows == (await client.materialize("facts")).progress.done
    expected = [best[f"N{i}"][2] for i in range(entities)]
    assert expected == await weights(client, *(f"N{i}" for i in range(entities)))


async def test_a_range_reads_only_its_rows_and_marks_no_file_as_done(client: fw.Client, table: Table) -> None:
    table.write("a.parquet", ("N1", 1, 1.0, ""), ("N2", 2, 2.0, ""), ("N3", 3, 3.0, ""))
    await client.apply(table.definitions())
    job = await client.materialize("facts", start=T0 + timedelta(hours=2), end=T0 + timedelta(hours=3))
    assert job.progress.done == 1
    assert await weights(client, "N1", "N2", "N3") == [None, 2.0, None]
    await client.materialize("facts", end=T0 + timedelta(hours=2))
    assert await weights(client, "N1", "N2", "N3") == [1.0, 2.0, None]
    # A file with rows beyond the end is still due.
    await client.materialize("facts")
    assert await weights(client, "N1", "N2", "N3") == [1.0, 2.0, 3.0]


async def test_a_row_with_a_time_ahead_is_served_from_that_time_on(client: fw.Client, table: Table) -> None:
    async def online(**changes: Any) -> tuple[float | None, int]:
        answer = await client.online_features("all", {"tailnum": ["N1"]}, **changes)
        return to_dict(answer.features)["facts__weight"][0], answer.statuses[0]

    now = datetime.now(UTC)
    hours = (now - T0) / timedelta(hours=1)
    table.write("a.parquet", ("N1", hours - 1, 1.0, ""), ("N1", hours + 5 / 3600, 2.0, ""))
    await client.apply(table.definitions())
    await client.materialize("facts")
    assert (1.0, pb.FEATURE_STATUS_PRESENT) == await online()
    table.write("b.parquet", ("N1", hours - 0.5, 3.0, ""))
    await client.materialize("facts")
    if datetime.now(UTC) < now + timedelta(seconds=5):
        assert (3.0, pb.FEATURE_STATUS_PRESENT) == await online()

    async def is_served() -> bool:
        return (await online())[0] == 2.0

    await eventually(is_served, within=30)
    assert datetime.now(UTC) >= now + timedelta(seconds=5)
    assert (None, pb.FEATURE_STATUS_NOT_YET_VALID) == await online(as_of=now)


async def test_unreadable_files_are_named_and_all_others_are_materialized(
    client: fw.Client, table: Table
) -> None:
    table.write("a.parquet", ("N1", 1, 1.0, ""))
    with table.tables._fs.open_output_stream(table.uri.removeprefix("s3://") + "b.parquet") as stream:
        stream.write(b"PAR1 truncated")
    table.write("c.parquet", ("N2", 1, 2.0, ""), ("N3", 24 * 365 * 7000, 3.0, "the year 9013"))
    table.write("d.parquet", ("N4", 1, float("inf"), ""))
    table.write("e.parquet", ("N5", 1, 5.0, "n" * (10 << 20)))
    table.write("f.parquet", ("N6", 1, float("nan"), "NaN is null"), ("N7", 1, 7.0, ""))
    wrong = pl.DataFrame({"tailnum": ["N8"], "at": [T0], "known_at": [T0], "weight": ["heavy"], "note": [""]})
    table.tables.write(table.uri + "g.parquet", wrong)
    await client.apply(table.definitions())
    job = await job_ended(client, (await started(client)).name)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.error_reason == "FILES_LEFT_OUT"
    assert job.error_message.startswith("5 files were left out")
    assert "b.parquet" in job.error_message
    assert "2100" in job.error_message
    names = [f"N{i}" for i in range(1, 9)]
    assert await weights(client, *names) == [1.0, None, None, None, None, None, 7.0, None]
    # Repaired files are due, and no others.
    for file in "bcdeg":
        table.write(f"{file}.parquet", ("N2", 1, 2.0, ""))
    assert (await client.materialize("facts")).progress.done == 5
    assert await weights(client, "N2") == [2.0]


async def test_the_rows_per_second_limit_holds_and_a_cancelled_job_stops(
    client: fw.Client, table: Table
) -> None:
    table.write_many("a.parquet", 3_000, 0.0, entities=3_000)
    await client.apply(table.definitions())
    begun = time.monotonic()
    job = await client.materialize("facts", rows_per_second=2_000)
    assert job.progress.done == 3_000
    assert time.monotonic() - begun > 1.0
    table.write_many("b.parquet", 50_000, 9.0, entities=50_000)
    slow = await started(client, rows_per_second=500)
    messages = []
    async for answer in client.feature.WatchJob(pb.WatchJobRequest(name=slow.name)):
        messages.append(answer.job.progress.message)
        if "s left" in messages[-1]:
            await client.feature.CancelJob(pb.CancelJobRequest(name=slow.name))
            break
    assert (await job_ended(client, slow.name)).state == job_pb2.JOB_STATE_CANCELLED
    # The rest is still due.
    assert (await client.materialize("facts")).progress.done == 50_000
    assert await weights(client, "N49999") == [9.0 + 49_999]


async def test_a_killed_job_continues_within_its_file(
    service_processes: ServiceProcesses, table: Table
) -> None:
    table.write_many("a.parquet", 300_000, 0.0, entities=300_000)
    port = free_port()
    process = service_processes.start(port)
    async with fw.Client(feature=f"127.0.0.1:{port}") as client:
        await eventually(lambda: answers(client), within=30)
        await client.apply(table.definitions())
        job = await started(client, rows_per_second=60_000)
        async for answer in client.feature.WatchJob(pb.WatchJobRequest(name=job.name)):
            # The first batch of 65,536 rows is done.
            if answer.job.progress.done > 70_000:
                break
    process.send_signal(signal.SIGKILL)
    process.wait()
    port = free_port()
    service_processes.start(port)
    async with fw.Client(feature=f"127.0.0.1:{port}") as client:
        await eventually(lambda: answers(client), within=30)
        job = await job_ended(client, job.name, within=60)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED
        # Each row of the file was counted once over both processes, including the interrupted batch.
        assert job.progress.done == 300_000
        answer = await client.online_features("all", {"tailnum": ["N0", "N65535", "N299999"]})
        assert to_dict(answer.features)["facts__weight"] == [0.0, 65_535.0, 299_999.0]
