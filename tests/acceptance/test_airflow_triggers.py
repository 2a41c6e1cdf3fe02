"""The trigger of flywheel-airflow in Airflow's own runner of triggers, with a trainer in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.acceptance.test_airflow import Airflow
from tests.support.builders.trainer import AT, job
from tests.support.servers.restarted_trainer import RestartedTrainer

PROGRAM = Path(__file__).parent / "clients" / "airflow_trigger.py"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.mark.parametrize(("end", "cancelled"), [("kill", True), ("shutdown", False)])
async def test_only_a_user_who_ends_the_task_cancels_the_job(
    trainer: RestartedTrainer, tmp_path: Path, end: str, cancelled: bool
) -> None:
    """A triggerer that shuts down leaves the job to the next one."""
    waiting = job()
    async with fw.Client(waiting.name.project, trainer=trainer.address) as client:
        await client.create_experiment("late")
        await trainer.ports.jobs.create(waiting, {}, "", b"", AT)
        await Airflow(tmp_path, trainer.address).run(PROGRAM, str(waiting.name), end)
        found = (await client.trainer.GetJob(pb.GetJobRequest(name=str(waiting.name)))).job
    assert found.cancel_requested is cancelled
