"""A SCORE job that is killed with SIGKILL again and again scores every row once more at most."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.batch_scoring.output import TEMPORARY, Output
from flywheel_job.batch_scoring.spec import FINISH
from flywheel_job.objects import STORE_FOLDER
from flywheel_job.outcome import Outcome
from flywheel_job.worker import call
from tests.support.builders.inference import run_onnx
from tests.support.builders.kinds import regression
from tests.support.peers.inference import RegistryServicer, kind_release
from tests.support.scoring_job import PREDICTIONS, read_predictions, scoring_job, write_table

PARTITIONS, PARTITION_ROWS = 200, 1000
ROWS = PARTITIONS * PARTITION_ROWS


def start(folder: Path) -> subprocess.Popen[bytes]:
    """One rank of the job in a process of its own."""
    environment = {**os.environ, STORE_FOLDER: str(folder)}
    command = [sys.executable, "-m", "flywheel_job.worker", "s3://b/spec.json"]
    return subprocess.Popen(command, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_attempts_lose_at_most_the_partition_in_progress(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    x = np.random.default_rng(5).normal(size=(ROWS, 2))
    times = pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * ROWS, pa.timestamp("us", "UTC"))
    keys = pa.array(np.arange(ROWS))
    names = ["carrier", "event_timestamp", "hist__delay", "trip__miles"]
    table = pa.table([keys, times, x[:, 0], x[:, 1]], names)
    write_table(store, table, row_group_rows=PARTITION_ROWS)
    model = regression()
    release = kind_release(RegistryServicer(), 1, model)
    spec = scoring_job(store, release, {"model.onnx": model.file}, partition_rows=PARTITION_ROWS)
    objects.write(store, "s3://b/spec.json", spec.to_json())

    finished = tmp_path / objects.path_of(PREDICTIONS) / TEMPORARY
    reached: list[int] = []
    for wanted in (10, 45, 105, 165):
        process = start(tmp_path)
        while process.poll() is None and len(list(finished.glob("*.json"))) < wanted:
            time.sleep(0.005)
        assert process.poll() is None, "the attempt ended before it was killed"
        process.kill()
        process.wait()
        reached.append(len(Output(store, PREDICTIONS).finished()))
        assert not list(finished.parent.glob("*.parquet"))
    assert reached == sorted(reached) and reached[-1] < PARTITIONS
    assert start(tmp_path).wait() == 0
    outcome = Outcome.from_json(objects.read(store, spec.outcome_uri))
    steps = {point.key: point.step for point in outcome.points if point.key != "rows_done"}
    assert steps == {"rows_total": ROWS, "rows_resumed": reached[-1] * PARTITION_ROWS}
    call(FINISH, spec, store)
    found = read_predictions(store)
    assert [row["carrier"] for row in found] == list(range(ROWS))
    wanted_scores = run_onnx(model.file, {"x": x}, model.signature.output.tensor)
    np.testing.assert_allclose([row["score"] for row in found], wanted_scores, rtol=1e-12)
