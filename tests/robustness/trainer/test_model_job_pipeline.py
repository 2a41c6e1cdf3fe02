"""A pipeline that tunes, evaluates, exports and scores on real Ray, undisturbed and through kill -9 of the
trainer during each of these jobs: each is submitted once, and no effect happens twice."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.builders.trainer import learnable_rows
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, MODEL, Peers, landed_spine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
Start = Callable[[dict[str, str]], Awaitable[Any]]
ROWS = 4000
KINDS = ["TUNE", "EVALUATE", "EXPORT", "SCORE"]
SPINE = landed_spine()
TUNE = fw.TuneJob(
    pb.TrainSpec(
        experiment="projects/default/experiments/late", tabular=pb.TabularRecipe(epochs=2, hidden_sizes=[16])
    ),
    space={"learning_rate": fw.Choices([1e-3, 3e-3])},
    minimize="val_loss",
    max_trials=2,
    seed=1,
)


@fw.pipeline("whole", params={"table": None})
def whole(p: fw.PipelineBuilder) -> None:
    data = p.training_set("data", feature_set=FEATURE_SET, spine=SPINE)
    tuned = p.tune("tune", TUNE, data=data)
    registered = p.register("register", model=MODEL, trained=tuned, data=data)
    evaluated = p.evaluate(
        "evaluate",
        fw.EvaluateJob(
            experiment="late",
            record_evidence=True,
            start_time=datetime(2000, 1, 1, tzinfo=UTC),
            bootstrap_samples=20,
        ),
        registered=registered,
        data=data,
    )
    exported = p.export(
        "export",
        fw.ExportJob(
            experiment="late",
            format="INT8_STATIC",
            max_flip_share=0.5,
            max_log_loss_increase=1.0,
            max_auc_loss=0.5,
        ),
        trained=tuned,
        data=data,
        when=[evaluated["metrics.auc"] > 0.5],
    )
    released = p.release("release", registered=registered, trained=tuned, after=[exported])
    p.score(
        "score",
        fw.ScoreJob(release="", table="s3://later/table.parquet", experiment="late"),
        released=released,
        values={"score.table_uri": p.param("table")},
    )


@pytest.fixture
async def trainer(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    s3_settings: S3Settings,
    start_trainer: Start,
) -> Any:
    """A trainer with the pipeline and the table to score."""
    content = io.BytesIO()
    learnable_rows(ROWS).select("carrier").write_parquet(content)
    async with object_store(s3_settings) as store:
        await store.put("users/tonight.parquet", content.getvalue())
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    async with fw.Client(trainer=trainer.address) as client:
        await client.create_experiment("late")
        await client.apply_pipeline(whole)
    return trainer


async def start(trainer: Any, bucket: str) -> str:
    async with fw.Client(trainer=trainer.address) as client:
        return (await client.run_pipeline("whole", {"table": f"s3://{bucket}/users/tonight.parquet"})).name


async def jobs_of(trainer: Any) -> dict[str, list[pb.Job]]:
    """The jobs by their kind."""
    found: dict[str, list[pb.Job]] = {}
    async with fw.Client(trainer=trainer.address) as client:
        listed = await client.trainer.ListJobs(pb.ListJobsRequest(parent="projects/default"))
    for job in listed.jobs:
        found.setdefault(job.kind, []).append(job)
    return found


async def ended(trainer: Any, name: str) -> pb.PipelineRun | None:
    async with fw.Client(trainer=trainer.address) as client:
        run = (await client.trainer.GetPipelineRun(pb.GetPipelineRunRequest(name=name))).pipeline_run
    return run if run.HasField("ended_at") else None


async def check(trainer: Any, name: str, peers: Peers, s3_settings: S3Settings, bucket: str) -> None:
    """Wait for the end of the run, and check that each effect happened once."""
    run = await eventually(lambda: ended(trainer, name), within=600, every=0.5)
    assert run.state == job_pb2.JOB_STATE_SUCCEEDED, run.error_message
    assert {step.step: step.state for step in run.steps} == dict.fromkeys(
        ("data", "tune", "register", "evaluate", "export", "release", "score"), job_pb2.JOB_STATE_SUCCEEDED
    )
    assert {step.attempt for step in run.steps} == {1}
    outputs = {step.step: step.outputs for step in run.steps}
    jobs = await jobs_of(trainer)
    assert {kind: [job.name for job in jobs[kind]] for kind in KINDS} == {
        kind: [outputs[kind.lower()]["job"]] for kind in KINDS
    }
    assert {len(job.attempts) for kind in KINDS for job in jobs[kind]} == {1}
    assert peers.requests.conflicts == []
    # The second training set has the features of the scored table.
    assert dict(peers.requests.effects) == {
        "BuildTrainingSet": 2,
        "CreateModelVersion": 1,
        "PromoteModelVersion": 1,
        "RecordEvaluation": 1,
        "CreateRelease": 1,
    }
    (evaluation,) = peers.registry.evaluations
    assert evaluation.name == run.model_version
    assert evaluation.values["auc"] == outputs["evaluate"]["metrics"]["auc"] > 0.5
    assert "model.onnx" in outputs["export"]["artifacts"]
    prefix = outputs["score"]["params"]["predictions_uri"].removeprefix(f"s3://{bucket}/")
    async with object_store(s3_settings) as store:
        keys = [one.key async for one in store.list("predictions/") if one.key.endswith(".parquet")]
        assert keys and all(key.startswith(prefix) for key in keys)
        rows = sum([pl.read_parquet(io.BytesIO(await store.get(key))).height for key in keys])
    assert rows == ROWS


async def test_a_pipeline_tunes_evaluates_exports_and_scores(
    trainer: Any, peers: Peers, s3_settings: S3Settings, bucket: str
) -> None:
    await check(trainer, await start(trainer, bucket), peers, s3_settings, bucket)


async def test_it_completes_through_a_kill_during_each_job(
    trainer: Any, peers: Peers, s3_settings: S3Settings, bucket: str
) -> None:
    name = await start(trainer, bucket)

    async def is_running(kind: str) -> bool:
        jobs = (await jobs_of(trainer)).get(kind, [])
        assert not jobs or not jobs[0].HasField("ended_at"), f"the {kind} job ended before the kill"
        return bool(jobs) and jobs[0].state == job_pb2.JOB_STATE_RUNNING

    for kind in KINDS:
        await eventually(lambda kind=kind: is_running(kind), within=300, every=0.1)  # type: ignore[misc]
        trainer.kill()
        await trainer.start()
    await check(trainer, name, peers, s3_settings, bucket)
