"""Jobs that were stored before attempts existed are read and supervised after the migration."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_trainer.jobs.attempt import Attempt
from flywheel_trainer.jobs.job import JobName, JobState
from flywheel_trainer.server import MIGRATIONS
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.jobs import PostgresJobs
from flywheel_trainer.store.postgres.supervision import PostgresSupervision
from tests.support.builders.trainer import AT, TRAIN_SPEC

OLD_SPEC = {
    "experiment": "late",
    "training_set": "projects/p/trainingSets/t",
    "hyperparameters": {
        "hidden_sizes": [8, 4],
        "epochs": 3,
        "batch_size": 1024,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "dropout": 0.0,
        "seed": 4294967295,
        "holdout_fraction": 0.2,
        "weight_column": "",
    },
    "warm_start": "projects/p/models/m/versions/1",
    "workers": 2,
    "gpus_per_worker": 0,
    "details": {"uri": "s3://b/t", "columns": [["v__x", "FLOAT64"]], "warm_start": None},
}
EXPERIMENT = "INSERT INTO experiment VALUES ('p', 'late', '', '{}', $1)"
RUN = """
INSERT INTO run (id, project, experiment, state, params, tags, artifacts, code_version, environment,
    training_set, job, lease_seconds, heartbeat_at, started_at)
VALUES ($1, 'p', 'late', 'RUNNING', '{}', '{}', '[]', '', '{}', '', '', 60, $2, $2)
"""
JOB = """
INSERT INTO job (id, project, kind, state, spec, run_id, priority, created_at, started_at)
VALUES ($1, 'p', 'TRAIN', $2, $3, $4, 0, $5, $6)
"""


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED])
async def test_an_old_job_is_read_and_supervised(
    empty_database: str, tmp_path: Path, state: JobState
) -> None:
    for file in sorted(MIGRATIONS.glob("*.sql"))[:2]:
        shutil.copy(file, tmp_path)
    async with create_pool(empty_database, init=prepare) as pool:
        await migrate(pool, tmp_path)
        await pool.execute(EXPERIMENT, AT)
        await pool.execute(RUN, "run-1", AT)
        started = None if state is JobState.QUEUED else AT
        await pool.execute(JOB, "job-1", str(state), OLD_SPEC, "run-1", AT, started)
        await migrate(pool, MIGRATIONS)
        job = await PostgresJobs(pool).get(JobName("p", "job-1"))
        active = await PostgresSupervision(pool, 1).active()
    assert job is not None
    hyperparameters = replace(TRAIN_SPEC.hyperparameters, seed=4294967295)
    spec = replace(TRAIN_SPEC, hyperparameters=hyperparameters, warm_start="projects/p/models/m/versions/1")
    assert (spec, state) == (job.spec, job.state)
    attempt = Attempt(1, "job-1", AT, AT)
    assert ((attempt,) if state is JobState.RUNNING else ()) == job.attempts
    if state is JobState.SUCCEEDED:
        assert [] == active
    else:
        assert [(job, OLD_SPEC["details"])] == [(a.job, a.details) for a in active]
