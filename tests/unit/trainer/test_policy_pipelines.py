"""Policies that name stored pipelines: what is refused when they are set, and the messages."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.trainer.v1 import pipeline_graph_pb2, policy_pipeline_pb2, retraining_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.policies.decision import Trigger
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.schedule import Due
from tests.support.builders.trainer import AT
from tests.support.builders.trainer_requests import MODEL, POLICY, P, set_policy
from tests.support.servers.trainer import MemoryTrainer

GRAPH = {
    "params": {"table": None, "scheduled_at": None, "workers": 1},
    "steps": [
        {
            "id": "score",
            "job": {
                "score": {"experiment": f"{P}/experiments/late", "release": f"{MODEL}/releases/1"},
            },
            "inputs": {
                "score.table_uri": {"param": "table"},
                "score.as_of": {"param": "scheduled_at"},
                "score.workers": {"param": "workers"},
            },
        }
    ],
}


def stored(pipeline: str = f"{P}/pipelines/nightly", **params: Any) -> policy_pipeline_pb2.StoredPipeline:
    fields = {"pipeline": pipeline, "params": params or {"table": "s3://lake/tonight.parquet"}}
    return ParseDict(fields, policy_pipeline_pb2.StoredPipeline())


def nightly(pipeline: policy_pipeline_pb2.StoredPipeline) -> dict[str, Any]:
    """Fields of a policy that runs a pipeline at night, and nothing else."""
    schedule = retraining_pb2.RetrainingSchedule(cron="0 2 * * *", pipeline=pipeline)
    return {"pipeline": None, "ignore_drift": True, "schedule": schedule}


async def apply(trainer: MemoryTrainer) -> None:
    graph = ParseDict(GRAPH, pipeline_graph_pb2.PipelineGraph())
    request = pipeline_graph_pb2.ApplyPipelineRequest(parent=P, pipeline_id="nightly", graph=graph)
    await trainer.stub.ApplyPipeline(request)


async def test_a_policy_may_consist_of_a_schedule_of_a_stored_pipeline(trainer: MemoryTrainer) -> None:
    await apply(trainer)
    request = set_policy(**nightly(stored(table="s3://lake/t", workers=2)))
    policy = (await trainer.stub.SetRetrainingPolicy(request)).policy
    assert not policy.HasField("pipeline")
    assert request.policy.schedule.pipeline == policy.schedule.pipeline
    listed = await trainer.stub.ListRetrainingPolicies(pb.ListRetrainingPoliciesRequest(parent=P))
    assert [policy] == list(listed.policies)
    name = PolicyName.parse(POLICY)
    await trainer.policies.decide_time(name, Trigger.SCHEDULE, Due(AT), AT)
    (run,) = (await trainer.stub.ListPipelineRuns(pb.ListPipelineRunsRequest(parent=P))).pipeline_runs
    assert (POLICY, f"{P}/pipelines/nightly/versions/1") == (run.policy, run.pipeline)
    assert {"table": "s3://lake/t", "workers": 2, "scheduled_at": "2026-01-01T00:00:00Z"} == dict(run.params)


async def test_pipelines_of_all_triggers_are_converted(trainer: MemoryTrainer) -> None:
    graph = ParseDict(
        {**GRAPH, "params": {**GRAPH["params"], "scheduled_at": AT.isoformat()}},
        pipeline_graph_pb2.PipelineGraph(),
    )
    await trainer.stub.ApplyPipeline(
        pipeline_graph_pb2.ApplyPipelineRequest(parent=P, pipeline_id="nightly", graph=graph)
    )
    continuous = retraining_pb2.ContinuousRetraining(
        window=Duration(seconds=3600), pipeline=stored(table="s3://b/c")
    )
    request = set_policy(pipeline=None, drift_pipeline=stored(table="s3://b/d"), continuous=continuous)
    policy = (await trainer.stub.SetRetrainingPolicy(request)).policy
    assert request.policy.drift_pipeline == policy.drift_pipeline
    assert continuous.pipeline == policy.continuous.pipeline


CONTINUOUS = retraining_pb2.ContinuousRetraining(window=Duration(seconds=3600), min_rows=5, pipeline=stored())


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        (nightly(stored(f"{P}/pipelines/other")), "UNKNOWN_PIPELINE", "other"),
        (nightly(stored(f"{P}/pipelines/nightly/versions/9")), "UNKNOWN_PIPELINE", "versions/9"),
        (nightly(stored("nightly")), "INVALID_NAME", "nightly"),
        (nightly(stored("projects/q/pipelines/nightly")), "INVALID_POLICY", "policy.schedule.pipeline"),
        (nightly(stored(workers=1)), "MISSING_STEP_INPUT", "'table' has no default"),
        (nightly(stored(table="t", tabel="t")), "INVALID_PIPELINE", "no parameter 'tabel'"),
        (nightly(stored(table="t", scheduled_at="x")), "INVALID_POLICY", "set by the trigger"),
        ({"pipeline": None, "drift_pipeline": stored()}, "MISSING_STEP_INPUT", "'scheduled_at'"),
        ({"pipeline": None}, "INVALID_POLICY", "policy.pipeline is missing"),
        ({"pipeline": None, "ignore_drift": True}, "INVALID_POLICY", "policy.pipeline is missing"),
        (nightly(stored()) | {"ignore_drift": False}, "INVALID_POLICY", "policy.pipeline is missing"),
        ({"continuous": CONTINUOUS}, "INVALID_POLICY", "policy.continuous.min_rows"),
        ({"history": Duration(seconds=3_200_000_000)}, "INVALID_POLICY", "policy.history"),
    ],
)
async def test_a_policy_that_could_start_no_run_is_refused(
    trainer: MemoryTrainer, fields: dict[str, Any], reason: str, words: str
) -> None:
    await apply(trainer)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.stub.SetRetrainingPolicy(set_policy(**fields))
    error = from_rpc_error(caught.value)
    assert reason == error.reason
    assert words in error.message
    listed = await trainer.stub.ListRetrainingPolicies(pb.ListRetrainingPoliciesRequest(parent=P))
    assert [] == list(listed.policies)
