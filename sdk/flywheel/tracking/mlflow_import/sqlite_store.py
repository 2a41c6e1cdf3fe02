"""The SQLite file of an MLflow server."""

from __future__ import annotations

import math
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from flywheel.tracking.mlflow_import.source import SourcePoint, SourceRun, local_artifacts, local_path

_RUNS = """
SELECT r.run_uuid, e.name, r.name, r.status, r.lifecycle_stage, r.start_time, r.end_time, r.artifact_uri
FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id ORDER BY r.start_time, r.run_uuid
"""
_PARAMS = "SELECT key, value FROM params WHERE run_uuid = ?"
_TAGS = "SELECT key, value FROM tags WHERE run_uuid = ?"
_METRICS = """
SELECT key, step, value, is_nan, timestamp FROM metrics WHERE run_uuid = ? ORDER BY key, step, timestamp
"""


class SqliteStore:
    """`Source` of a file such as `mlflow.db`, which is opened for reading only."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            # One import reads it, from several threads in turn.
            self._database = sqlite3.connect(
                f"{file.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False
            )
            self._database.execute("SELECT run_uuid FROM runs LIMIT 1")
        except sqlite3.Error as error:
            raise ValueError(f"{file} is no SQLite file of MLflow: {error}.") from error

    def runs(self) -> Iterator[SourceRun]:
        for uuid, experiment, name, status, stage, start, end, uri in self._database.execute(
            _RUNS
        ).fetchall():
            tags = {key: value or "" for key, value in self._database.execute(_TAGS, [uuid])}
            yield SourceRun(
                uuid,
                experiment,
                name or tags.get("mlflow.runName", ""),
                status,
                stage == "deleted",
                start or 0,
                end,
                dict(self._database.execute(_PARAMS, [uuid])),
                tags,
                local_path(uri or ""),
                uri or "",
            )

    def metrics(self, run: SourceRun) -> Iterator[tuple[str, Sequence[SourcePoint]]]:
        rows = self._database.execute(_METRICS, [run.uuid])
        for key, points in groupby(rows, key=lambda row: row[0]):
            yield (
                key,
                [SourcePoint(step, _value(value, is_nan), time) for _, step, value, is_nan, time in points],
            )

    def artifacts(self, run: SourceRun) -> Iterator[tuple[str, Path]]:
        return local_artifacts(run)

    def close(self) -> None:
        self._database.close()


def _value(value: float, is_nan: int) -> float:
    """MLflow stores NaN as a flag, and infinities as the largest float."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
