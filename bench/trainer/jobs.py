"""Seconds from the submission of a job to its first step, and the memory of the trainer with 20 jobs.

Both sides train the same network with Ray Train in one worker, on a cluster that runs already. Ours is
submitted by the SDK to a trainer process on PostgreSQL and S3; the other is a script that Ray's Jobs API
starts.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

import flywheel as fw
from bench import measure
from bench.common.deployment import QUIET, Deployment
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2

ROUNDS = 5
JOBS, RUNNING = 20, 4
MEBIBYTE = 1 << 20
STEP = '''
import time

import torch


def first_step():
    """The time at the end of the first step."""
    net = torch.nn.Linear(64, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(256, 64)).square().mean().backward()
    optimizer.step()
    return time.time()


def train(ctx):
    ctx.log({"first_step": first_step()}, 1)


def wait(ctx):
    for step in range(1, 100_000):
        ctx.log({"loss": 1 / step}, step)
        time.sleep(0.1)
'''
SCRIPT = f"""{STEP}

def loop(config):
    with open(config["file"], "w") as file:
        file.write(repr(first_step()))


if __name__ == "__main__":
    import sys
    import tempfile

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(log_to_driver=True, logging_level="warning")
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            loop,
            train_loop_config={{"file": sys.argv[1]}},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(storage_path=folder),
        ).fit()
"""


class Submissions:
    """Submits the job to either side, and waits for its end."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        from ray.job_submission import JobSubmissionClient

        self._deployment, self._folder = deployment, folder
        (folder / "source").mkdir()
        (folder / "source" / "train.py").write_text(STEP)
        (folder / "script.py").write_text(SCRIPT)
        ray = deployment.backends.ray
        self._jobs = JobSubmissionClient(ray.jobs_url, headers={"Authorization": f"Bearer {ray.token}"})

    def job(self, function: str, cpus: float = 1.0) -> fw.TrainJob:
        return fw.TrainJob(f"train.py:{function}", self._folder / "source", "bench", cpus_per_worker=cpus)

    def ours(self) -> float:
        """Seconds to the first step of a TRAIN job."""

        async def run() -> float:
            async with fw.Client(trainer=self._deployment.address) as client:
                begin = time.time()
                found = await client.run_job(self.job("train"))
                return shown("ours", float(found.metrics["first_step"]) - begin)

        return asyncio.run(run())

    def ray(self) -> float:
        """Seconds to the first step of the script."""
        file = self._folder / "first-step"
        file.unlink(missing_ok=True)
        begin = time.time()
        name = self._jobs.submit_job(
            entrypoint=f"python {self._folder / 'script.py'} {file}",
            runtime_env={"env_vars": self._deployment.code},
        )
        while not self._jobs.get_job_status(name).is_terminal():
            time.sleep(0.2)
        if not file.exists():
            raise RuntimeError(self._jobs.get_job_logs(name)[-2000:])
        return shown("Ray", float(file.read_text()) - begin)


def run(only: str) -> Iterable[measure.Row]:
    """The rows whose name contains `only`."""
    first, memory = "submission to first step", f"memory with {JOBS} jobs, {RUNNING} running"
    if only in first:
        with trainer(2) as deployment, tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name:
            submissions = start(deployment, Path(name))
            # The first round warms up: the files of both have been read once.
            pairs = measure.alternating(ROUNDS + 1, submissions.ours, submissions.ray)[1:]
            yield measure.compared(
                first, "s", "Ray's Jobs API with the same script", pairs, measure.at_most(1.5)
            )
    if only in memory:
        with (
            trainer(RUNNING) as deployment,
            tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name,
        ):
            used = asyncio.run(peak_memory(deployment, start(deployment, Path(name))))
            target = measure.at_most(200, of_value=True)
            yield measure.row(memory, used / MEBIBYTE, "MiB", target)


def trainer(running_jobs: int) -> Deployment:
    """A trainer with Ray, which lets so many jobs run at the same time."""
    return Deployment("trainer", "ray", max_running_jobs=str(running_jobs), **QUIET)


def shown(side: str, seconds: float) -> float:
    """Print a measurement, because a round takes long."""
    measure.console.print(f"  {side}: {seconds:.1f} s to the first step")
    return seconds


def start(deployment: Deployment, folder: Path) -> Submissions:
    """The submissions, and the experiment of ours."""
    os.environ |= deployment.backends.ray.environment

    async def create() -> None:
        async with fw.Client(trainer=deployment.address) as client:
            request = pb.CreateExperimentRequest(parent=client.parent, experiment_id="bench")
            await client.trainer.CreateExperiment(request)

    asyncio.run(create())
    return Submissions(deployment, folder)


async def peak_memory(deployment: Deployment, submissions: Submissions) -> int:
    """The largest resident memory of the trainer in bytes, over 30 s in which RUNNING jobs log metrics."""
    service = psutil.Process(deployment.process.pid)
    peak = 0
    async with fw.Client(trainer=deployment.address) as client:
        for _ in range(JOBS):
            await client.submit_job(submissions.job("wait", cpus=2 / RUNNING))
        until = time.monotonic() + 240
        while time.monotonic() < until:
            peak = max(peak, service.memory_info().rss)
            jobs = (
                await client.trainer.ListJobs(pb.ListJobsRequest(parent=client.parent, page_size=100))
            ).jobs
            states = [one.state for one in jobs]
            logging = sum(one.progress.done > 20 for one in jobs)
            if logging == RUNNING and until - time.monotonic() > 30:
                until = time.monotonic() + 30
            await asyncio.sleep(0.5)
        assert states.count(job_pb2.JOB_STATE_QUEUED) == JOBS - RUNNING, states
        assert logging == RUNNING, states
        for one in jobs:
            await client.trainer.CancelJob(pb.CancelJobRequest(name=one.name))
    return peak
