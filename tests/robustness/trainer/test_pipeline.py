"""The pipeline from a spine to a rollout, through kill -9 of the trainer, with a real training job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import numpy as np
import onnxruntime
import pytest

from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import TrainingCompleted
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, MODEL, landed_spine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(800)]


def request(request_id: str, *, epochs: int = 3, warm_start: str = "") -> pb.StartPipelineRunRequest:
    spine = landed_spine()
    return pb.StartPipelineRunRequest(
        parent="projects/default",
        request_id=request_id,
        spec=pb.PipelineSpec(
            model=MODEL,
            feature_set=FEATURE_SET,
            spine=spine,
            train=pb.TrainSpec(
                experiment="projects/default/experiments/late",
                tabular=pb.TabularRecipe(
                    epochs=epochs, hidden_sizes=[16], learning_rate=3e-3, warm_start=warm_start
                ),
                workers=1,
            ),
            fallback=model_pb2.Fallback(default_score=0.2),
            segment_keys=["carrier"],
            start_rollout=True,
        ),
    )


async def test_a_pipeline_survives_kills_and_has_each_effect_once(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    database: str,
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
) -> None:
    peers.feature.running_reads = 15
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    async with trainer.stub() as stub:
        await stub.CreateExperiment(
            pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        )
        first = await stub.StartPipelineRun(request("once"))
        again = await stub.StartPipelineRun(request("once"))
        assert again.pipeline_run.name == first.pipeline_run.name
        name = first.pipeline_run.name
        await eventually(lambda: peers.requests.calls["GetJob"] >= 3, within=120, every=0.1)

    trainer.kill()  # while the training set is being built
    await trainer.start()
    async with trainer.stub() as stub:

        async def training() -> bool:
            jobs = (await stub.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs
            return bool(jobs) and jobs[0].state == job_pb2.JOB_STATE_RUNNING

        await eventually(training, within=180, every=0.3)

    trainer.kill()  # while the job is running
    await trainer.start()
    async with trainer.stub() as stub:

        async def ended() -> pb.PipelineRun | None:
            run = (await stub.GetPipelineRun(pb.GetPipelineRunRequest(name=name))).pipeline_run
            return run if run.HasField("ended_at") else None

        run = await eventually(ended, within=400, every=0.5)
        assert run.state == job_pb2.JOB_STATE_SUCCEEDED, run.error_message
        jobs = (await stub.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs
        tracked = (await stub.GetRun(pb.GetRunRequest(name=run.run))).run
        points = await stub.ListMetricPoints(pb.ListMetricPointsRequest(run=run.run, key="train_loss"))

    assert [(s.step, s.state) for s in run.steps] == [
        (step, job_pb2.JOB_STATE_SUCCEEDED)
        for step in ("training_set", "train", "evaluate", "register", "release", "rollout")
    ]
    assert run.gate_passed
    assert [job.kind for job in jobs] == ["EVALUATE", "TRAIN"]
    assert peers.requests.conflicts == []
    assert dict(peers.requests.effects) == dict.fromkeys(
        ("BuildTrainingSet", "CreateModelVersion", "PromoteModelVersion", "CreateRelease", "StartRollout"), 1
    )
    assert list(points.steps) == [1, 2, 3]
    assert tracked.state == pb.RUN_STATE_SUCCEEDED
    assert tracked.code_version
    assert tracked.environment["torch"]

    version = peers.registry.versions[run.model_version]
    assert version.pipeline_run == name
    assert version.metrics["auc"] > 0.75
    assert {f"importance{{feature={one.name}}}" for one in version.signature.inputs} <= set(version.metrics)
    assert {a.name for a in version.artifacts} == {"model.onnx", "weights.pt", "report.json"}
    golden = version.golden_rows
    (rows,) = golden.tensors
    inputs = np.frombuffer(rows.data, "<f4").reshape(golden.row_count, len(version.signature.inputs))
    session = onnxruntime.InferenceSession(peers.registry.files[version.name, "model.onnx"])
    scores = session.run(["SCORE"], {"INPUT": inputs})[0]
    assert scores.shape == (golden.row_count, 1)
    np.testing.assert_allclose(scores[:, 0], np.frombuffer(golden.output.data, "<f4"), atol=1e-5)
    release = peers.registry.releases[run.release]
    assert release.calibration.platt.slope > 0
    assert release.fallback.default_score == 0.2
    assert list(release.segment_keys) == ["carrier"]
    assert 0 < release.threshold < 1

    # The second run starts from the champion's weights and is compared with it; the gate rejects it.
    peers.registry.gate_passes = False
    async with trainer.stub() as stub:
        second = await stub.StartPipelineRun(request("second", epochs=2, warm_start=version.name))
        name = second.pipeline_run.name
        rejected = await eventually(ended, within=400, every=0.5)
    assert (rejected.state, rejected.gate_passed) == (job_pb2.JOB_STATE_SUCCEEDED, False)
    states = {s.step: s.state for s in rejected.steps}
    assert states["register"] == job_pb2.JOB_STATE_SUCCEEDED
    assert states["release"] == states["rollout"] == job_pb2.JOB_STATE_CANCELLED
    challenger = peers.registry.versions[rejected.model_version]
    assert challenger.parent_version == version.name
    # The champion was evaluated on the same rows in the first run, so its metrics are equal.
    for metric in ("auc", "log_loss"):
        assert challenger.metrics[f"champion_{metric}"] == pytest.approx(version.metrics[metric], abs=1e-9)
    assert dict(peers.registry.evidence[-1].values) == dict(challenger.metrics)
    assert peers.requests.effects["CreateRelease"] == 1

    events = await outbox(database)
    assert [e.type for e in events] == ["flywheel.events.v1.TrainingCompleted"] * 2
    first_event, second_event = (TrainingCompleted.FromString(e.payload) for e in events)
    assert (first_event.pipeline_run, first_event.succeeded) == (run.name, True)
    assert first_event.model_version == version.name
    assert (second_event.pipeline_run, second_event.succeeded) == (rejected.name, True)
    assert "auc 0.8 < 0.99" in second_event.message


async def outbox(database: str) -> list[Event]:
    connection = await asyncpg.connect(database)
    try:
        return [
            Event.FromString(row["value"])
            for row in await connection.fetch("SELECT value FROM outbox ORDER BY id")
        ]
    finally:
        await connection.close()
