"""A TUNE job whose driver and whose trainer are killed three times each."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import flywheel as fw
from flywheel_common.errors import Unavailable
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import tuning_pb2
from tests.support.eventually import eventually
from tests.support.servers.trainer import TrainerProcess
from tests.support.tune_jobs import driver_of, tune_job

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
Start = Callable[[dict[str, str]], Awaitable[TrainerProcess]]
TRIALS = 100
TRIAL_SECONDS = 0.5  # so that the job still runs when the trainer is back


async def test_killed_tuning_gives_the_trials_of_an_undisturbed_one(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
    tmp_path: Path,
) -> None:
    settings = trainer_settings | with_peers | with_ray
    trainer = await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        request = pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        await client.trainer.CreateExperiment(request)
        limits = {"max_trials": TRIALS, "parallel_trials": 1}
        undisturbed = await client.tune(tune_job(tmp_path, **limits))
        expected = await client.trials(undisturbed.job.name)
        job = await client.start_tuning(tune_job(tmp_path, TRIAL_SECONDS, **limits))

        async def has_ended(count: int) -> bool:
            try:
                trials = await client.trials(job.name)
            except Unavailable:  # the client waits up to 2 s before it connects again
                return False
            return sum(one.state != tuning_pb2.TRIAL_STATE_RUNNING for one in trials) >= count

        async def kill_driver() -> bool:
            process = driver_of(job.name)
            if process is not None:
                os.kill(process, signal.SIGKILL)
            return process is not None

        for count in (13, 34, 55):
            await eventually(lambda count=count: has_ended(count), within=300)  # type: ignore[misc]
            trainer.kill()
            await asyncio.sleep(2)
            trainer = await start_trainer(settings)
            await eventually(lambda count=count: has_ended(count + 5), within=300)  # type: ignore[misc]
            await eventually(kill_driver, within=60)
        await wait_out_trainer(client, job.name)
        trials = await client.trials(job.name)
        assert [one.number for one in trials] == list(range(TRIALS))
        assert all(one.state == tuning_pb2.TRIAL_STATE_SUCCEEDED for one in trials)
        assert len({one.params_json for one in trials}) == TRIALS
        assert [one.params_json for one in trials] == [one.params_json for one in expected]
        assert [list(one.values) for one in trials] == [list(one.values) for one in expected]
        ended = (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).job
        assert len(ended.attempts) == 4


async def wait_out_trainer(client: fw.Client, job: str) -> None:
    result = await client.wait_tuning(job)
    assert [one.number for one in result.best] == [one.number for one in await client.best_trials(job)]
