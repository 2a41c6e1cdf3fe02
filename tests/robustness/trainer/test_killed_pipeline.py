"""kill -9 of the trainer during each step of a pipeline in turn: it completes, and no effect happens
twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, MODEL, landed_spine

SPINE = landed_spine()
SPEC = pb.TrainSpec(
    experiment="projects/default/experiments/late",
    tabular=pb.TabularRecipe(epochs=3, hidden_sizes=[16], learning_rate=3e-3),
)


@fw.pipeline("whole")
def whole(p: fw.PipelineBuilder) -> None:
    data = p.training_set("data", feature_set=FEATURE_SET, spine=SPINE)
    trained = p.train("train", SPEC, data=data, cache=True)
    compared = p.compare("evaluate", model=MODEL, trained=trained, data=data)
    registered = p.register("register", model=MODEL, trained=trained, data=data, compared=compared)
    approved = p.approval("approve", "Release it?", when=[compared["metrics.log_loss"] < 5.0])
    released = p.release("release", registered=registered, trained=trained, after=[approved])
    p.rollout("rollout", released=released)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_a_pipeline_survives_a_kill_during_each_step(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
) -> None:
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    requests = peers.requests

    def client() -> fw.Client:
        return fw.Client(trainer=trainer.address)

    async def found() -> pb.PipelineRun:
        async with client() as called:
            return (await called.trainer.GetPipelineRun(pb.GetPipelineRunRequest(name=name))).pipeline_run

    async def restart(hold: str) -> None:
        trainer.kill()
        requests.hold = hold
        await trainer.start()

    async def kill_during(method: str, hold: str) -> None:
        """Kill the trainer between the effect and the answer of a call; then hold another method."""
        assert requests.hold == method
        await eventually(lambda: requests.held > 0, within=180, every=0.1)
        requests.held = 0
        await restart(hold)

    async with client() as called:
        await called.create_experiment("late")
        await called.apply_pipeline(whole)
        requests.hold = "BuildTrainingSet"
        name = (await called.run_pipeline("whole")).name
    await kill_during("BuildTrainingSet", "")

    async def jobs() -> Sequence[pb.Job]:
        async with client() as called:
            return (await called.trainer.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs

    async def running(kind: str) -> bool:
        return any(job.kind == kind and job.state == job_pb2.JOB_STATE_RUNNING for job in await jobs())

    await eventually(lambda: running("TRAIN"), within=120, every=0.2)
    await restart("GetModel")
    await kill_during("GetModel", "")
    await eventually(lambda: running("EVALUATE"), within=120, every=0.2)
    await restart("CreateModelVersion")
    await kill_during("CreateModelVersion", "PromoteModelVersion")
    await kill_during("PromoteModelVersion", "")

    async def waits() -> bool:
        run = await found()
        assert not run.HasField("ended_at"), run
        assert all(step.state != job_pb2.JOB_STATE_CANCELLED for step in run.steps), run.steps
        return any(step.waits_for_approval for step in run.steps)

    await eventually(waits, within=120, every=0.2)
    # A new version of the workflow's code continues the run of the old one, which has ended.
    trainer.settings["FLYWHEEL_TRAINER_PIPELINE_VERSION"] = "graph-test"
    await restart("CreateRelease")
    assert await waits()
    async with client() as called:
        await called.approve_step(name, "approve", reason="looks good")
    await kill_during("CreateRelease", "StartRollout")
    await kill_during("StartRollout", "")

    async def ended() -> pb.PipelineRun | None:
        run = await found()
        return run if run.HasField("ended_at") else None

    run = await eventually(ended, within=120, every=0.3)
    assert run.state == job_pb2.JOB_STATE_SUCCEEDED, run.error_message
    assert {step.state for step in run.steps} == {job_pb2.JOB_STATE_SUCCEEDED}
    assert {step.attempt for step in run.steps} == {1}
    assert requests.conflicts == []
    assert dict(requests.effects) == dict.fromkeys(
        ("BuildTrainingSet", "CreateModelVersion", "PromoteModelVersion", "CreateRelease", "StartRollout"), 1
    )
    assert Counter(job.kind for job in await jobs()) == {"TRAIN": 1, "EVALUATE": 1}
    async with client() as called:
        # A rerun of all steps takes the model of an equal job from the cache; its release is another one.
        again = await called.rerun_pipeline(name, "data")
        await eventually(lambda: requests.effects["CreateModelVersion"] == 2, within=120, every=0.2)
        again = (await called.trainer.GetPipelineRun(pb.GetPipelineRunRequest(name=again.name))).pipeline_run
    assert Counter(job.kind for job in await jobs()) == {"TRAIN": 1, "EVALUATE": 2}
    assert [(step.step, step.reused_from) for step in again.steps if step.reused_from] == [("train", name)]
