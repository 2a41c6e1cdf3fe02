"""Time and peak memory of a training set whose history does not fit into memory (join in partitions).

    python -m bench.feature.large_join [--rows 50000000] [--spine 1000000] [--memory 2048] [--repeat]

Starts its own S3 in a temporary folder, writes the history as Parquet files of a million rows (an entity key,
event time, created time, two numbers, a text), and builds a point-in-time training set with TTL and created
times. `--memory` is the setting join_memory_mebibytes. The peak memory is that of this process and of the
join process. With `--repeat` the set is built again with half of the memory, and the hashes must be equal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow.fs as fs

from flywheel_common.clock import SystemClock
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    DAY,
    BatchView,
    DataType,
    Entity,
    Feature,
    FeatureSet,
    Field,
    ParquetSource,
    Source,
    VersionRef,
    View,
)
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import FileSpine, TrainingSet, TrainingSetRequest
from flywheel_feature.offline.partitioned.build import MEBIBYTE, JoinLimits
from flywheel_feature.store.engines.process import PartitionProcess
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.backends import Backends
from flywheel_local.s3 import S3

BUCKET = "large-join"
FILE_ROWS = 1_000_000
START, YEAR = 1_357_000_000_000_000, 365 * DAY


class PrintedJob:
    """A job that prints its stages."""

    def __init__(self) -> None:
        self._last = ""
        self._started = time.monotonic()

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        if message != self._last:
            print(
                f"  {time.monotonic() - self._started:6.1f} s  {message} ({done} of {total} {unit})",
                flush=True,
            )
        self._last = message

    def check_cancelled(self) -> None:
        pass


def definitions() -> Catalog:
    key = Field("user", DataType.INT64)
    fields = (
        key,
        Field("at", DataType.TIMESTAMP),
        Field("written", DataType.TIMESTAMP),
        Field("amount", DataType.FLOAT64),
        Field("count", DataType.INT64),
        Field("place", DataType.STRING),
    )
    source = Source("p", "history", fields, "at", "written", ParquetSource(f"s3://{BUCKET}/history/"))
    features = tuple(Feature(f.name, f.data_type, field=f.name) for f in fields[3:])
    view = View(
        "p", "user", "user", BatchView("history", features), ttl=90 * DAY, version=1, features=features
    )
    schema = tuple(Field(f"user__{f.name}", f.data_type) for f in features)
    feature_set = FeatureSet(
        "p",
        "set",
        tuple(f"user:{f.name}" for f in features),
        version=1,
        views=(view.ref,),
        schema=schema,
        join_keys=(key,),
    )
    return Catalog(
        "p",
        entities={"user": Entity("p", "user", (key,))},
        sources={"history": source},
        views={view.ref: view},
        feature_sets={VersionRef("set", 1): feature_set},
        latest_views={"user": view},
        latest_feature_sets={"set": feature_set},
    )


def write_inputs(tables: S3Tables, rows: int, spine: int) -> None:
    users = max(rows // 50, 1)
    for file, start in enumerate(range(0, rows, FILE_ROWS)):
        chance = np.random.default_rng(file)
        count = min(FILE_ROWS, rows - start)
        times = START + chance.integers(0, YEAR, count)
        frame = pl.DataFrame(
            {
                "user": chance.integers(0, users, count),
                "at": times,
                "written": times + chance.integers(0, 3 * DAY, count),
                "amount": chance.normal(size=count),
                "count": chance.integers(0, 100, count),
                "place": chance.integers(0, 5000, count),
            }
        ).with_columns(_time("at"), _time("written"), pl.format("place-{}", "place").alias("place"))
        tables.write(f"s3://{BUCKET}/history/part-{file:05d}.parquet", frame)
    chance = np.random.default_rng(999)
    rows_of_spine = {
        "user": chance.integers(0, users, spine),
        "when": START + chance.integers(0, YEAR, spine),
    }
    tables.write(f"s3://{BUCKET}/spine.parquet", pl.DataFrame(rows_of_spine).with_columns(_time("when")))


def _time(name: str) -> pl.Expr:
    return pl.from_epoch(name, "us").dt.replace_time_zone("UTC").alias(name)


def watch_joins() -> Callable[[], float]:
    """Watch the join processes; the returned function stops and returns their highest VmHWM (MiB)."""
    highest, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error, OSError):
                    if "flywheel_feature.join_worker" in child.cmdline():
                        status = Path(f"/proc/{child.pid}/status").read_text()
                        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                        highest[0] = max(highest[0], int(peak.split()[1]) / 1024)

    watching = threading.Thread(target=watch)
    watching.start()

    def peak() -> float:
        ended.set()
        watching.join()
        return highest[0]

    return peak


async def build(tables: S3Tables, server: S3, spill: Path, memory: int, name: str) -> TrainingSet:
    catalog = definitions()

    async def catalogs(_: str) -> Catalog:
        return catalog

    environment = {
        "FLYWHEEL_FEATURE_S3_ENDPOINT": server.endpoint,
        "FLYWHEEL_FEATURE_S3_ACCESS_KEY": server.access_key,
        "FLYWHEEL_FEATURE_S3_SECRET_KEY": server.secret_key,
        "FLYWHEEL_FEATURE_S3_BUCKET": BUCKET,
    }
    builder = TrainingSetBuilder(
        catalogs=catalogs,
        tables=tables,
        archive=MemoryArchive(),
        training_sets=MemoryTrainingSets(),
        clock=SystemClock(),
        engines=[PartitionProcess(str(spill), environment)],
        limits=JoinLimits(memory * MEBIBYTE),
    )
    wanted = TrainingSetRequest("p", name, "set", 0, FileSpine(f"s3://{BUCKET}/spine.parquet", "when"))
    peak = watch_joins()
    started = time.monotonic()
    built = await builder.build(wanted, PrintedJob())
    spent = time.monotonic() - started
    joining = peak()
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {built.row_count:,} rows in {spent:.0f} s, hash {built.content_hash[:16]}")
    print(
        f"peak memory: join process {joining:,.0f} MiB, this process {here:,.0f} MiB (limit {memory:,} MiB)"
    )
    return built


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--spine", type=int, default=1_000_000)
    parser.add_argument("--memory", type=int, default=2048)
    parser.add_argument("--repeat", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="large-join-") as folder:
        backends = Backends({"s3"}, directory=Path(folder) / "s3", durable=False)
        backends.start()
        try:
            (server,) = backends
            assert isinstance(server, S3)
            files = fs.S3FileSystem(
                access_key=server.access_key,
                secret_key=server.secret_key,
                scheme="http",
                allow_bucket_creation=True,
                endpoint_override=server.endpoint.removeprefix("http://"),
            )
            files.create_dir(BUCKET)
            tables = S3Tables.connect(
                endpoint=server.endpoint,
                access_key=server.access_key,
                secret_key=server.secret_key,
                bucket=BUCKET,
            )
            started = time.monotonic()
            write_inputs(tables, arguments.rows, arguments.spine)
            print(
                f"{arguments.rows:,} rows of history written in {time.monotonic() - started:.0f} s",
                flush=True,
            )
            spill = Path(folder) / "spill"
            first = asyncio.run(build(tables, server, spill, arguments.memory, "first"))
            if arguments.repeat:
                again = asyncio.run(build(tables, server, spill, arguments.memory // 2, "again"))
                assert first.content_hash == again.content_hash, "the number of partitions changed the result"
        finally:
            for server in backends:
                server.stop()


if __name__ == "__main__":
    main()
