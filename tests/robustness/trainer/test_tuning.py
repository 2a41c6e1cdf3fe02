"""TUNE jobs on real Ray, PostgreSQL and S3, submitted by the SDK."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import JobFailedError
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import tuning_pb2
from tests.support.tune_jobs import tune_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
Start = Callable[[dict[str, str]], Awaitable[Any]]


async def test_trials_are_runs_and_bad_ones_are_stopped_early(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
    tmp_path: Path,
) -> None:
    settings = trainer_settings | with_peers | with_ray
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        request = pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        await client.trainer.CreateExperiment(request)
        stopping = fw.Asha(min_steps=1, reduction_factor=2)
        result = await client.tune(
            tune_job(tmp_path, max_trials=8, parallel_trials=2, early_stopping=stopping)
        )
        trials = await client.trials(result.job.name)
        assert [one.number for one in trials] == list(range(8))
        succeeded = [one for one in trials if one.state == tuning_pb2.TRIAL_STATE_SUCCEEDED]
        stopped = [one for one in trials if one.state == tuning_pb2.TRIAL_STATE_STOPPED]
        assert len(succeeded) + len(stopped) == 8
        assert succeeded
        assert stopped
        best = min(succeeded, key=lambda one: one.values[0])
        assert [one.number for one in result.best] == [best.number]
        run = (await client.trainer.GetRun(pb.GetRunRequest(name=best.run))).run
        assert (run.parent_run, run.state) == (result.job.run, pb.RUN_STATE_SUCCEEDED)
        assert run.metrics["loss"] == best.values[0] == (result.params["x"] - 0.5) ** 2 + 1 / 3
        assert run.metrics["system/memory_bytes/rank-0"] > 1e6
        # A stopped trial took no step after the answer.
        run = (await client.trainer.GetRun(pb.GetRunRequest(name=stopped[0].run))).run
        points = await client.trainer.ListMetricPoints(pb.ListMetricPointsRequest(run=run.name, key="loss"))
        assert (run.state, max(points.steps)) == (pb.RUN_STATE_CANCELLED, stopped[0].last_step)
        assert (result.job.progress.done, result.job.progress.total) == (8, 8)

        with pytest.raises(JobFailedError, match=r"UNKNOWN_METRIC.*'accuracy'.*it logged: loss, offset"):
            await client.tune(tune_job(tmp_path, minimize="accuracy", max_trials=3))
