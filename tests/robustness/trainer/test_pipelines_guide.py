"""The programs and commands of docs/guides/pipelines.md as they are written, on a real trainer and Ray."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "pipelines.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


class Shell:
    """Runs the commands of the guide in the folder of the pipeline."""

    def __init__(self, folder: Path, trainer: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "FLYWHEEL_TRAINER_ADDRESS": trainer, "COLUMNS": "300"}

    async def python(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=self.folder,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    async def command(self, line: str, run: str = "") -> str:
        program, *arguments = shlex.split(line.replace("RUN", run))
        assert program == "flywheel"
        return await self.python("-c", "from flywheel.cli.main import main; main()", *arguments)


async def test_the_guide_trains_registers_and_releases_a_model_of_ones_own_code(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
    tmp_path: Path,
) -> None:
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    code, pipelines, policy, nightly = blocks("python")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(code)
    (folder / "weekly.py").write_text(pipelines)
    (folder / "policy.py").write_text(policy)
    (folder / "nightly.py").write_text(nightly)
    (folder / "nightly.json").write_text(*blocks("json"))
    shell = Shell(folder, trainer.address)
    first, again, policies, why = (
        re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in blocks("console")
    )

    async with fw.Client(trainer=trainer.address) as client:
        await client.create_experiment("late")
        assert "late-weekly/versions/1 created" in await shell.command(first[0])
        assert "late-weekly/versions/1 unchanged" in await shell.command(first[0])
        assert "late-data/versions/1" in await shell.command(first[1])
        run = (await shell.command(first[2])).strip()

        async def waits() -> bool:
            request = pb.GetPipelineRunRequest(name=run)
            found = (await client.trainer.GetPipelineRun(request)).pipeline_run
            assert found.state == job_pb2.JOB_STATE_RUNNING, found.error_message
            return any(step.waits_for_approval for step in found.steps)

        await eventually(waits, within=300, every=0.5)
        assert "[waits for approval] — Release it?" in await shell.command(first[3], run)
        await shell.command(first[4], run)
        shown = await shell.command(first[5], run)
        assert f"{run} SUCCEEDED" in shown
        assert "✔ rollout (rollout)" in shown
        version = peers.registry.versions[f"{MODEL}/versions/1"]
        assert {artifact.name for artifact in version.artifacts} == {"model.onnx", "report.json"}
        assert (version.pipeline_run, version.training_dataset) == (run, "projects/default/trainingSets/one")
        best = max(version.metrics["accuracy"], 0.0)
        jobs = (await client.trainer.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs
        runs = [(await client.trainer.GetRun(pb.GetRunRequest(name=job.run))).run for job in jobs]
        assert best == max(found.metrics["accuracy"] for found in runs)
        assert sorted(found.params["c"] for found in runs) == ["0.1", "1"]

        rerun = (await shell.command(again[0], run)).strip()
        again_ended = await client.wait_pipeline(rerun)
        assert again_ended.model_version == f"{MODEL}/versions/2"
        kept = [step.step for step in again_ended.steps if step.reused_from]
        assert kept == ["data", "train[0]", "train[1]", "best", "approve"]
        assert (await shell.command(again[1])).count("SUCCEEDED") == 2
        assert (await shell.command(again[1])).count("SUCCEEDED") == 2
        listed = await client.trainer.ListPipelineRuns(pb.ListPipelineRunsRequest(parent="projects/default"))
        assert len(listed.pipeline_runs) == 4, "the second backfill has started nothing"
        assert rerun in await shell.command(again[2])

        assert "Europe/Berlin" in await shell.python("policy.py")
        shown = [await shell.command(command) for command in policies]
        for text, output in zip(
            ("late-nightly/versions/1 created", "0 2 * * *", "tonight"), shown, strict=False
        ):
            assert text in output
        tree = await shell.command(why[0])
        for name in ("pipelines/late-weekly/versions/1", run, "trainingSets/one", "views/v/versions/2"):
            assert name in tree
        assert len(jobs) == 2
