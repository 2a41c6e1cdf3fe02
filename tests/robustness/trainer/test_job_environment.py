"""Jobs with packages of their own, installed from the package index on a real Ray cluster."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import JobFailedError
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_protos.trainer.v1 import trainer_pb2 as pb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
Start = Callable[[dict[str, str]], Awaitable[Any]]
UV = Path(__file__).resolve().parents[3] / ".local" / "bootstrap" / "bin" / "uv"
LOCK = """\
pyfiglet==1.0.2 \\
    --hash=sha256:889b351d79c99e50a3f619c8f8e6ffdb27fd8c939fc43ecbd7559bd57d5f93ea
"""
CODE = """
import sys

import pyfiglet


def check(ctx):
    assert pyfiglet.__file__.startswith(sys.prefix), pyfiglet.__file__


def train(ctx):
    assert pyfiglet.__file__.startswith(sys.prefix), pyfiglet.__file__
    if ctx.rank == 0:
        ctx.artifact("prefix", sys.prefix.encode())
    ctx.log({"height": pyfiglet.figlet_format("fly").count(chr(10))}, 1)
"""


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    return tmp_path / "environments"


@pytest.fixture
async def client(
    trainer_settings: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
    environments: Path,
) -> AsyncIterator[fw.Client]:
    settings = trainer_settings | with_ray
    variables = json.loads(settings["FLYWHEEL_TRAINER_JOB_ENVIRONMENT"])
    variables["FLYWHEEL_JOB_ENVIRONMENTS"] = str(environments)
    settings["FLYWHEEL_TRAINER_JOB_ENVIRONMENT"] = json.dumps(variables)
    settings["FLYWHEEL_TRAINER_JOB_UV"] = str(UV)
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        await client.trainer.CreateExperiment(
            pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        )
        yield client


def job(folder: Path, requirements: str, **fields: Any) -> fw.TrainJob:
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(CODE)
    (folder / "requirements.lock").write_text(requirements)
    return fw.TrainJob(
        "train.py:train",
        folder,
        experiment="late",
        check="train.py:check",
        requirements="requirements.lock",
        **fields,
    )


def made(environments: Path) -> list[str]:
    return sorted(one.name for one in environments.iterdir() if one.is_dir())


async def test_a_job_runs_with_the_packages_of_its_lock(
    client: Any, tmp_path: Path, environments: Path, s3_settings: S3Settings, bucket: str
) -> None:
    run = await client.run_job(job(tmp_path / "code", LOCK, workers=2))
    assert run.metrics["height"] > 1
    assert hashlib.sha256(LOCK.encode()).hexdigest() == run.environment["requirements_sha256"]
    assert "requirements.lock" == run.environment["requirements"]
    stored = {artifact.name: artifact.uri.removeprefix(f"s3://{bucket}/") for artifact in run.artifacts}
    async with object_store(s3_settings) as store:
        assert b"pyfiglet==1.0.2\n" == await store.get(stored["requirements.resolved.txt"])
        prefix = Path((await store.get(stored["prefix"])).decode())
    assert environments == prefix.parent
    assert str(prefix) != sys.prefix
    # Equal requirements have one environment, also of another job.
    first = made(environments)
    tuned = fw.TuneJob(
        job(tmp_path / "other", LOCK), {"x": fw.FloatRange(0, 1)}, maximize="height", max_trials=2
    )
    result = await client.tune(tuned)
    assert 2 == len(await client.trials(result.job.name))
    assert first == made(environments) == [prefix.name]


async def test_plain_requirements_are_recorded_as_they_were_resolved(
    client: Any, tmp_path: Path, s3_settings: S3Settings, bucket: str
) -> None:
    run = await client.run_job(job(tmp_path / "code", "pyfiglet<1.0.3\n"))
    stored = {artifact.name: artifact.uri.removeprefix(f"s3://{bucket}/") for artifact in run.artifacts}
    async with object_store(s3_settings) as store:
        assert b"pyfiglet==1.0.2\n" == await store.get(stored["requirements.resolved.txt"])


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (LOCK.replace("889b351d", "00000000"), "Hash mismatch"),
        ("pyfiglet==99.9\n", "no version of pyfiglet==99.9"),
        ("pyfiglet is nice\n", "Couldn't parse"),
        ("-r absent.txt\n", "absent.txt"),
    ],
)
async def test_requirements_that_cannot_be_installed_fail_the_job(
    client: Any, tmp_path: Path, environments: Path, requirements: str, message: str
) -> None:
    with pytest.raises(JobFailedError) as caught:
        await client.run_job(job(tmp_path / "code", requirements))
    assert "INVALID_REQUIREMENTS" in str(caught.value)
    assert message in str(caught.value)
    assert [] == made(environments)
    jobs = (await client.trainer.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs
    assert [1] == [len(one.attempts) for one in jobs]
