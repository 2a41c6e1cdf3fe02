"""A TUNE job on real Ray, PostgreSQL and S3, submitted by the SDK; its trainer and its driver are killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import tuning_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import TRAINING_SET
from tests.support.servers.trainer import TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
Start = Callable[[dict[str, str]], Awaitable[TrainerProcess]]
CODE = """
def train(ctx):
    for step in (1, 2, 3):
        ctx.log({"loss": (ctx.params["x"] - 0.5) ** 2 + 1 / step, "offset": ctx.params["offset"]}, step)
"""
SPACE = {"x": fw.FloatRange(-1, 1), "offset": fw.Choices([1, 2])}


def tune_job(folder: Path, **fields: Any) -> fw.TuneJob:
    (folder / "objective.py").write_text(CODE)
    train = fw.TrainJob(
        function="objective.py:train",
        source=folder,
        experiment="late",
        data={"train": TRAINING_SET},
        cpus_per_worker=0.5,
    )
    return fw.TuneJob(train, **{"space": SPACE, "minimize": "loss", "seed": 1, **fields})


async def test_a_killed_tuning_job_continues_with_the_same_suggestions(
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
        result = await client.tune(tune_job(tmp_path, max_trials=25))
        undisturbed = await client.trials(result.job.name)
        assert [one.number for one in undisturbed] == list(range(25))
        assert all(one.state == tuning_pb2.TRIAL_STATE_SUCCEEDED for one in undisturbed)
        best = min(undisturbed, key=lambda one: one.values[0])
        assert [one.number for one in result.best] == [best.number]
        run = (await client.trainer.GetRun(pb.GetRunRequest(name=best.run))).run
        assert (run.parent_run, run.state) == (result.job.run, pb.RUN_STATE_SUCCEEDED)
        assert run.metrics["loss"] == best.values[0] == (result.params["x"] - 0.5) ** 2 + 1 / 3

        job = await client.start_tuning(tune_job(tmp_path, max_trials=25))

        async def ended(count: int) -> bool:
            return (
                sum(one.state != tuning_pb2.TRIAL_STATE_RUNNING for one in await client.trials(job.name))
                >= count
            )

        await eventually(lambda: ended(4), within=90)
        trainer.kill()
        await asyncio.sleep(1)
        trainer = await start_trainer(settings)
        await eventually(lambda: ended(10), within=90)
        os.kill(driver_of(job.name), signal.SIGKILL)
        result = await client.wait_tuning(job.name)
        assert len(result.job.attempts) == 2
        again = await client.trials(job.name)
        assert [one.params_json for one in again] == [one.params_json for one in undisturbed]
        assert [list(one.values) for one in again] == [list(one.values) for one in undisturbed]
        assert all(one.state == tuning_pb2.TRIAL_STATE_SUCCEEDED for one in again)


def driver_of(job: str) -> int:
    """The process that drives the trials."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"flywheel_job.tuning" in words and any(job.rpartition("/")[2].encode() in one for one in words):
            if b"flywheel_job.launcher" not in words:
                return int(folder.name)
    raise AssertionError("no driver runs")
