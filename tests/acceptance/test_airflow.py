"""The operators of flywheel-airflow in the DAG runs of a real Airflow, on a real trainer and Ray.

`make acceptance` installs Airflow into .local/clients/airflow: its requirements are not the product's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.feature.v1.training_set_pb2 import SourceSpine, Spine
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.integration.trainer.conftest import peers, start_trainer, trainer_settings, with_peers, with_ray
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, TRAINING_SET

__all__ = ["peers", "start_trainer", "trainer_settings", "with_peers", "with_ray"]

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".local" / "clients" / "airflow" / "bin" / "python"
DAG = Path(__file__).parent / "clients" / "airflow_dag.py"
CODE = ("sdk", "sdk/flywheel-airflow", "services/common", "protos/_generated")
DATE = "2026-01-02T00:00:00+00:00"
SUCCESS, FAILED = ("TaskInstanceState.SUCCESS", "success"), ("TaskInstanceState.FAILED", "failed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]


@fw.pipeline("late-data", params={"end": None})
def late_data(p: fw.PipelineBuilder) -> None:
    spine = Spine(
        source=SourceSpine(
            source="projects/default/sources/landed", timestamp_field="scheduled", label="delay > 15"
        )
    )
    p.training_set(
        "data", feature_set=FEATURE_SET, spine=spine, values={"spine.source.end_time": p.param("end")}
    )


@fw.pipeline("late-approval", params={"end": None})
def late_approval(p: fw.PipelineBuilder) -> None:
    p.approval("approve", "Go on?")


@dataclass(frozen=True)
class Airflow:
    """An Airflow of its own: home folder with SQLite, and the connection to the trainer."""

    home: Path
    trainer: str

    @property
    def dag(self) -> Path:
        return self.home / "dags" / DAG.name

    async def start(self, *arguments: str | Path, **variables: str) -> asyncio.subprocess.Process:
        assert PYTHON.exists(), "Airflow is not installed: `make acceptance` installs it into .local/clients"
        host, _, port = self.trainer.rpartition(":")
        connection = {"conn_type": "flywheel", "host": host, "port": int(port), "password": "unused"}
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": ":".join(str(ROOT / folder) for folder in CODE),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW_CONN_FLYWHEEL_DEFAULT": json.dumps(connection),
            "TEST_OUTPUTS": str(self.home / "outputs.json"),
        }
        return await asyncio.create_subprocess_exec(
            PYTHON,
            *arguments,
            cwd=self.home,
            env=environment | variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def run(self, *arguments: str | Path, **variables: str) -> list[str]:
        """The lines of what a program printed."""
        return await ended(await self.start(*arguments, **variables))


async def ended(process: asyncio.subprocess.Process) -> list[str]:
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-6000:]
    return output.decode().splitlines()


@pytest.fixture
async def airflow(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
    tmp_path: Path,
) -> Airflow:
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    made = Airflow(tmp_path / "airflow", trainer.address)
    (made.home / "dags").mkdir(parents=True)
    made.dag.write_text(DAG.read_text())
    await made.run("-m", "airflow", "db", "migrate")
    async with fw.Client(trainer=trainer.address) as client:
        await client.create_experiment("late")
        await client.apply_pipeline(late_data)
        await client.apply_pipeline(late_approval)
    return made


async def test_the_dag_of_the_guide_is_a_dag(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "pipelines.md").read_text()
    (program,) = (block for block in re.findall(r"```text\n(.*?)```", guide, re.DOTALL) if "airflow" in block)
    (tmp_path / "dags").mkdir()
    program += "\nprint(sorted(score.upstream_task_ids))\n"
    *_, last = await Airflow(tmp_path, "127.0.0.1:1").run("-c", program)
    assert last == "['retrain']"


async def test_a_dag_run_starts_a_pipeline_and_a_job_once(airflow: Airflow, peers: Any) -> None:
    *_, states = await airflow.run(airflow.dag, DATE)
    assert set(json.loads(states)) == {"data", "train", "store"}
    assert all(state in SUCCESS for state in json.loads(states).values())
    first = json.loads((airflow.home / "outputs.json").read_text())
    assert first["data"]["state"] == first["train"]["state"] == "SUCCEEDED"
    assert first["data"]["training_set"] == first["train"]["training_set"] == TRAINING_SET
    assert first["data"]["steps"]["data"]["content_hash"] == "f" * 64
    (build,) = peers.feature.build_requests
    assert build.spine.source.end_time.ToJsonString() == "2026-01-02T00:00:00Z"

    # The same DAG run again, as after a lost worker: the same runs, and no second effect.
    *_, states = await airflow.run(airflow.dag, DATE, TEST_DEFERRABLE="1")
    assert all(state in SUCCESS for state in json.loads(states).values())
    assert json.loads((airflow.home / "outputs.json").read_text()) == first
    async with fw.Client(trainer=airflow.trainer) as client:
        run = (await client.trainer.GetRun(pb.GetRunRequest(name=first["train"]["run"]))).run
        assert dict(run.metrics) == first["train"]["metrics"]
        jobs = (await client.trainer.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs
        assert [job.name for job in jobs] == [first["train"]["job"]]
    assert dict(peers.requests.effects) == {"BuildTrainingSet": 1}

    # Another date is another DAG run; its tasks wait in triggers.
    *_, states = await airflow.run(airflow.dag, "2026-01-03T00:00:00+00:00", TEST_DEFERRABLE="1")
    assert all(state in SUCCESS for state in json.loads(states).values())
    other = json.loads((airflow.home / "outputs.json").read_text())
    assert other["data"]["pipeline_run"] != first["data"]["pipeline_run"]
    assert dict(peers.requests.effects) == {"BuildTrainingSet": 2}


async def test_a_lost_task_finds_its_run_and_a_killed_one_cancels_it(airflow: Airflow) -> None:
    async with fw.Client(trainer=airflow.trainer) as client:

        async def runs() -> list[pb.PipelineRun]:
            request = pb.ListPipelineRunsRequest(parent="projects/default")
            return list((await client.trainer.ListPipelineRuns(request)).pipeline_runs)

        async def waiting() -> pb.PipelineRun | None:
            return next((run for run in await runs() if any(s.waits_for_approval for s in run.steps)), None)

        lost = await airflow.start(airflow.dag, DATE, TEST_PIPELINE="late-approval")
        first = await eventually(waiting, within=120, every=0.3)
        lost.kill()
        await lost.communicate()
        # The next try, after the worker was lost, waits for the same run.
        killed = await airflow.start(airflow.dag, DATE, TEST_PIPELINE="late-approval")
        assert killed.stdout is not None
        async with asyncio.timeout(120):
            while first.name not in (await killed.stdout.readline()).decode():
                pass
        assert [run.name for run in await runs()] == [first.name]
        killed.send_signal(signal.SIGTERM)
        *_, states = await ended(killed)
        assert json.loads(states)["data"] in FAILED
        (found,) = await runs()
        assert (found.name, found.state) == (first.name, job_pb2.JOB_STATE_CANCELLED)

        again = await airflow.start(airflow.dag, DATE, TEST_PIPELINE="late-approval")
        second = await eventually(waiting, within=120, every=0.3)
        assert second.name != first.name
        await client.approve_step(second.name, "approve")
        output = await ended(again)
        assert json.loads(output[-1])["data"] in SUCCESS, output[-30:]
        assert [run.name for run in await runs()] == [second.name, first.name]
