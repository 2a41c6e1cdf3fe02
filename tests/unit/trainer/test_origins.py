"""The tree of a model version's origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.launch import Column
from flywheel_protos.trainer.v1 import origin_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.pipelines.pipeline_run import PipelineRunName
from flywheel_trainer.policies.origin import Node, Origins
from tests.support.builders.trainer import AT, TRAINING_SET, drift
from tests.support.builders.trainer_requests import MODEL, P, create_run, set_policy
from tests.support.servers.trainer import MemoryTrainer

SET, VIEW, SOURCE = f"{P}/featureSets/late/versions/1", f"{P}/views/v/versions/2", f"{P}/sources/landed"


async def test_a_version_is_explained_from_its_policy_to_its_sources(trainer: MemoryTrainer) -> None:
    await trainer.stub.SetRetrainingPolicy(set_policy())
    decision = await trainer.policies.decide(drift("a1"), AT)
    assert decision is not None
    run = (await trainer.stub.CreateRun(create_run())).run.name
    trainer.feature.known[TRAINING_SET] = TrainingSet(
        TRAINING_SET, "s3://b/t", (Column("v__x", "FLOAT64"),), 1234, "f" * 64, SET
    )
    trainer.feature.edges[SET] = ((VIEW, SET), (SOURCE, VIEW))
    version = await created(trainer, run, TRAINING_SET, decision.pipeline_run)
    request = origin_pb2.ExplainModelVersionRequest(name=version)
    origin = (await trainer.stub.ExplainModelVersion(request)).origin
    assert (
        f"model_version {version}\n"
        f"  pipeline_run {decision.pipeline_run} QUEUED\n"
        f"    policy {P}/retrainingPolicies/late\n"
        f"      event {P}/alerts/a1 drift at 2013-06-01T12:00:00+00:00\n"
        f"  run {run}\n"
        f"    training_set {TRAINING_SET} 1,234 rows, hash ffffffffffff\n"
        f"      feature_set {SET}\n"
        f"        view {VIEW}\n"
        f"          source {SOURCE}\n"
    ) == text(origin)
    unknown = origin_pb2.ExplainModelVersionRequest(name=f"{MODEL}/versions/9")
    with pytest.raises(grpc.RpcError) as caught:
        await trainer.stub.ExplainModelVersion(unknown)
    assert grpc.StatusCode.NOT_FOUND == caught.value.code()
    trainer.feature.down = True
    with pytest.raises(grpc.RpcError) as caught:
        await trainer.stub.ExplainModelVersion(request)
    assert "FEATURE_UNAVAILABLE" == from_rpc_error(caught.value).reason


async def test_a_rerun_has_the_event_of_the_run_that_it_repeats(trainer: MemoryTrainer) -> None:
    await trainer.stub.SetRetrainingPolicy(set_policy())
    decision = await trainer.policies.decide(drift("a1"), AT)
    assert decision is not None
    names = [decision.pipeline_run]
    for _ in range(2):
        await trainer.ports.pipelines.finish(PipelineRunName.parse(names[-1]), JobState.FAILED, "X", "", AT)
        again = await trainer.stub.RerunPipelineRun(pb.RerunPipelineRunRequest(name=names[-1]))
        names.append(again.pipeline_run.name)
    version = await created(trainer, "", "", names[-1])
    request = origin_pb2.ExplainModelVersionRequest(name=version)
    assert (
        f"model_version {version}\n"
        f"  pipeline_run {names[2]} QUEUED\n"
        f"    pipeline_run {names[1]} steps of it were reused\n"
        f"    policy {P}/retrainingPolicies/late\n"
        f"      event {P}/alerts/a1 drift at 2013-06-01T12:00:00+00:00\n"
    ) == text((await trainer.stub.ExplainModelVersion(request)).origin)


async def test_what_no_longer_exists_is_shown_as_such(trainer: MemoryTrainer) -> None:
    gone = f"{P}/trainingSets/gone"
    version = await created(trainer, f"{P}/runs/gone", gone, f"{P}/pipelineRuns/gone")
    ports = trainer.ports
    origins = Origins(ports.registry, ports.feature, ports.runs, ports.pipelines, ports.policies)
    assert Node(
        "model_version",
        version,
        children=(
            Node("pipeline_run", f"{P}/pipelineRuns/gone", "no longer exists"),
            Node(
                "run",
                f"{P}/runs/gone",
                "no longer exists",
                (Node("training_set", gone, "no longer exists"),),
            ),
        ),
    ) == await origins.of(version)
    trainer.feature.known[gone] = replace(trainer.feature.known[TRAINING_SET], name=gone, feature_set=SET)
    found = await origins.of(version)
    assert Node("feature_set", SET, "no longer exists") == found.children[1].children[0].children[0]


async def created(trainer: MemoryTrainer, run: str, training_set: str, pipeline_run: str) -> str:
    registry: Any = trainer.ports.registry
    registry.add_model(MODEL)
    fields = {
        "training_run": run,
        "training_dataset": training_set,
        "pipeline_run": pipeline_run,
        "parent_version": "",
    }
    return str(await registry.create_version(MODEL, fields, ""))


def text(node: origin_pb2.OriginNode, indent: str = "") -> str:
    line = f"{indent}{node.kind} {node.name} {node.detail}".rstrip() + "\n"
    return line + "".join(text(child, indent + "  ") for child in node.children)
