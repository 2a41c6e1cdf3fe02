"""`flywheel pipelines` against a trainer in this process: decisions of people, cancelling, wrong input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from tests.support.builders.trainer import AT
from tests.support.commands import flywheel
from tests.support.servers.trainer import MemoryTrainer, serve_in_memory

PIPELINE = """
import flywheel as fw


@fw.pipeline("careful", params={"n": 1})
def careful(p: fw.PipelineBuilder) -> None:
    p.approval("approve", "Go on?")
"""


@pytest.fixture
async def trainer() -> AsyncIterator[MemoryTrainer]:
    async with AsyncExitStack() as stack:
        yield await serve_in_memory(stack)


async def cli(trainer: MemoryTrainer, *command: str) -> Any:
    return await flywheel("pipelines", *command, project="p", trainer=trainer.address)


async def waiting_run(trainer: MemoryTrainer, folder: Path) -> PipelineRunName:
    """A run, started by the command, whose step waits for approval."""
    (folder / "careful.py").write_text(PIPELINE)
    applied = await cli(trainer, "apply", str(folder / "careful.py"))
    assert 0 == applied.exit_code, applied.output
    name = PipelineRunName.parse(
        (await cli(trainer, "run", "careful", "--params", '{"n": 2}')).output.strip()
    )
    await trainer.ports.pipelines.begin_step(name, "approve", AT)
    return name


async def found(trainer: MemoryTrainer, name: PipelineRunName) -> PipelineRun:
    run = await trainer.ports.pipelines.get(name)
    assert run is not None
    return run


@pytest.mark.parametrize(("command", "approved"), [("approve", True), ("reject", False)])
async def test_a_person_decides_on_a_step_once(
    trainer: MemoryTrainer, tmp_path: Path, command: str, approved: bool
) -> None:
    name = await waiting_run(trainer, tmp_path)
    shown = await cli(trainer, "show", str(name))
    assert "▶ approve (approval)" in shown.output and "[waits for approval]" in shown.output
    answer = await cli(trainer, command, str(name), "approve", "--reason", "looked at it")
    assert 0 == answer.exit_code, answer.output
    (step,) = (await found(trainer, name)).steps
    assert step.approval is not None
    assert (approved, "looked at it") == (step.approval.approved, step.approval.reason)
    opposite = "reject" if approved else "approve"
    refused = await cli(trainer, opposite, str(name), "approve")
    assert refused.exit_code and "STEP_NOT_WAITING" in refused.output
    assert approved is (await found(trainer, name)).steps[0].approval.approved  # type: ignore[union-attr]


async def test_a_run_is_cancelled(trainer: MemoryTrainer, tmp_path: Path) -> None:
    name = await waiting_run(trainer, tmp_path)
    assert 0 == (await cli(trainer, "cancel", name.run)).exit_code
    run = await found(trainer, name)
    assert (True, {"n": 2}) == (run.cancel_requested, dict(run.params))


async def test_wrong_input_is_refused_and_starts_nothing(trainer: MemoryTrainer, tmp_path: Path) -> None:
    name = await waiting_run(trainer, tmp_path)
    for command, reason in (
        (("run", "careful", "--params", '{"x": 1}'), "INVALID_PIPELINE"),
        (("run", "careless"), "UNKNOWN_PIPELINE"),
        (("approve", str(name), "other"), "UNKNOWN_STEP"),
        (("rerun", str(name)), "PIPELINE_RUN_ACTIVE"),
    ):
        answer = await cli(trainer, *command)
        assert answer.exit_code and reason in answer.output, answer.output
    assert 1 == len((await trainer.ports.pipelines.list("p", (), 9, "")).items)
