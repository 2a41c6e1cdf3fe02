"""Export of runs to Parquet and to TensorBoard."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from flywheel.tracking.run_calls import RunCalls
from flywheel.tracking.tensorboard import write_events
from flywheel_common.storage.whole_files import parquet_bytes, whole_file, write_whole
from flywheel_protos.trainer.v1 import trainer_pb2

_TEXTS, _NUMBERS = pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.float64())
_TIME = pa.timestamp("us", tz="UTC")
RUNS_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("experiment", pa.string()),
        ("display_name", pa.string()),
        ("state", pa.string()),
        ("parent_run", pa.string()),
        ("notes", pa.string()),
        ("params", _TEXTS),
        ("tags", _TEXTS),
        ("last", _NUMBERS),
        ("min", _NUMBERS),
        ("max", _NUMBERS),
        ("started_at", _TIME),
        ("ended_at", _TIME),
        ("code_version", pa.string()),
    ]
)
POINTS_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("key", pa.string()),
        ("step", pa.int64()),
        ("value", pa.float64()),
        ("time", _TIME),
    ]
)


async def export_parquet(client: RunCalls, runs: Sequence[trainer_pb2.Run], folder: Path) -> list[Path]:
    """Write `runs.parquet`, a row per run, and `points.parquet`, a row per point.

    The points of one run at a time are in memory.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    rows = pa.Table.from_pylist([_row(run) for run in runs], RUNS_SCHEMA)
    disk = fs.LocalFileSystem()
    write_whole(disk, str(folder / "runs.parquet"), parquet_bytes(rows))
    with (
        whole_file(disk, str(folder / "points.parquet")) as stream,
        pq.ParquetWriter(stream, POINTS_SCHEMA) as writer,
    ):
        for run in runs:
            for curve in await client.run_curves(run.name):
                size = len(curve.steps)
                columns = [[run.name] * size, [curve.key] * size, curve.steps, curve.values, curve.times]
                writer.write_table(
                    pa.table(
                        [pa.array(c, f.type) for c, f in zip(columns, POINTS_SCHEMA, strict=True)],
                        schema=POINTS_SCHEMA,
                    )
                )
    return [folder / "runs.parquet", folder / "points.parquet"]


async def export_tensorboard(client: RunCalls, runs: Sequence[trainer_pb2.Run], folder: Path) -> list[Path]:
    """Write one event file per run, in a folder named after it."""
    paths = []
    for run in runs:
        run_id = run.name.rpartition("/")[2]
        seconds = run.started_at.seconds
        curves = await client.run_curves(run.name)
        paths.append(write_events(folder / run_id, curves, f"{seconds}.{run_id}"))
    return paths


def _row(run: trainer_pb2.Run) -> dict[str, object]:
    summaries = run.metric_summaries
    return {
        "run": run.name,
        "experiment": run.experiment,
        "display_name": run.display_name,
        "state": trainer_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_"),
        "parent_run": run.parent_run,
        "notes": run.notes,
        "params": list(run.params.items()),
        "tags": list(run.tags.items()),
        "last": list(run.metrics.items()),
        "min": [(key, summary.min) for key, summary in summaries.items()],
        "max": [(key, summary.max) for key, summary in summaries.items()],
        "started_at": run.started_at.ToMicroseconds(),
        "ended_at": run.ended_at.ToMicroseconds() if run.HasField("ended_at") else None,
        "code_version": run.code_version,
    }
