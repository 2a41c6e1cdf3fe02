"""`flywheel jobs`, against a trainer in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_job.outcome import Outcome
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.checkpoints.checkpoint import Checkpoint
from flywheel_trainer.jobs.attempt import engine_id
from flywheel_trainer.jobs.job import JobName, JobState
from flywheel_trainer.jobs.ports import TrainingSet
from tests.support.builders.trainer import AT, EXPERIMENT, TRAINING_SET
from tests.support.commands import flywheel
from tests.support.servers.trainer import MemoryTrainer, serve_in_memory

TRAIN_FILE = """
import flywheel as fw

job = fw.TrainJob(function="code.py:train", source={source!r}, experiment="late")
"""


@pytest.fixture
async def trainer() -> AsyncIterator[MemoryTrainer]:
    async with AsyncExitStack() as stack:
        trainer = await serve_in_memory(stack)
        trainer.feature.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "s3://b/t", (), 100, "f" * 64, "")
        await trainer.ports.runs.create_experiment(EXPERIMENT, "", b"", AT)
        yield trainer


async def cli(trainer: MemoryTrainer, *command: str) -> Any:
    return await flywheel(*command, project="p", trainer=trainer.address)


@pytest.fixture
def file(tmp_path: Path) -> str:
    source = tmp_path / "project"
    source.mkdir()
    (source / "code.py").write_text("def train(ctx):\n    pass\n")
    path = tmp_path / "job.py"
    path.write_text(TRAIN_FILE.format(source=str(source)))
    return str(path)


async def test_the_job_of_a_file_is_submitted_once_per_request(trainer: MemoryTrainer, file: str) -> None:
    for _ in range(2):
        started = await cli(trainer, "jobs", "run", file, "--detach", "--request", "tonight")
        assert started.exit_code == 0, started.output
    [job] = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    assert started.output.strip() == job.name
    assert job.train.code.function == "code.py:train"
    listed = await cli(trainer, "jobs", "list")
    assert "TRAIN" in listed.output
    shown = await cli(trainer, "jobs", "show", job.name.rpartition("/")[2])
    assert "QUEUED" in shown.output
    cancelled = await cli(trainer, "jobs", "cancel", job.name)
    assert cancelled.exit_code == 0, cancelled.output
    found = (await trainer.stub.GetJob(pb.GetJobRequest(name=job.name))).job
    assert found.cancel_requested or JobState(found.state) is JobState.CANCELLED


async def test_the_log_of_a_failed_job_ends_with_its_reason(trainer: MemoryTrainer, file: str) -> None:
    await cli(trainer, "jobs", "run", file, "--detach")
    [job] = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    supervision = trainer.ports.supervision(1_000_000)
    name = JobName.parse(job.name)
    assert await supervision.begin_attempt(name, AT) is not None
    await supervision.end(name, JobState.FAILED, Outcome(False, "JOB_CRASHED", "it failed"), AT)
    followed = await cli(trainer, "jobs", "logs", job.name)
    assert (1, True) == (followed.exit_code, "JOB_CRASHED: it failed" in followed.output)


async def test_the_checkpoints_of_a_job_are_listed(trainer: MemoryTrainer, file: str) -> None:
    await cli(trainer, "jobs", "run", file, "--detach")
    [job] = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    name = JobName.parse(job.name)
    assert await trainer.ports.supervision(1_000_000).begin_attempt(name, AT) is not None
    record = Checkpoint("", "000000000007-000001", 7, 1, 2, 4096, AT, {"loss": 0.5})
    await trainer.ports.checkpoints.replace(name, "", [record], engine_id(name.job, 1), AT)
    listed = await cli(trainer, "jobs", "checkpoints", name.job)
    assert listed.exit_code == 0, listed.output
    for shown in ("4096", "loss: 0.5", "2026-01-01"):
        assert shown in listed.output
    async with fw.Client("p", trainer=trainer.address) as client:
        [found] = await client.checkpoints(name.job)
    assert (found.step, found.world_size, dict(found.metrics)) == (7, 2, {"loss": 0.5})
    assert found.uri.endswith(f"/{name.job}/checkpoints/000000000007-000001")


async def test_a_file_without_exactly_one_job_is_refused(trainer: MemoryTrainer, tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("x = 1\n")
    refused = await cli(trainer, "jobs", "run", str(tmp_path / "none.py"))
    assert (1, True) == (refused.exit_code, "exactly one is needed" in refused.output)


async def test_what_is_no_job_is_refused_before_anything_is_sent(trainer: MemoryTrainer) -> None:
    async with fw.Client("p") as client:
        with pytest.raises(TypeError, match="str is no job"):
            await client.submit_job("late")  # type: ignore[arg-type]
