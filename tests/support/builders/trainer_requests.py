"""Requests to TrainerService in project p."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.builders.trainer import TRAINING_SET

P = "projects/p"
MODEL, POLICY = f"{P}/models/late", f"{P}/retrainingPolicies/late"


def timestamp(at: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(at)
    return message


def create_run(request_id: str = "", **fields: Any) -> pb.CreateRunRequest:
    run = pb.Run(experiment=f"{P}/experiments/late", **fields)
    return pb.CreateRunRequest(parent=P, run=run, request_id=request_id)


def train_spec(**fields: Any) -> pb.TrainSpec:
    recipe = pb.TabularRecipe(hidden_sizes=[8, 4], epochs=3, learning_rate=0.01)
    spec = pb.TrainSpec(experiment="late", training_set=TRAINING_SET, tabular=recipe, workers=2)
    spec.MergeFrom(pb.TrainSpec(**fields))
    return spec


def submit_job(request_id: str = "", priority: int = 0, **fields: Any) -> pb.SubmitJobRequest:
    job = pb.Job(train=train_spec(**fields), priority=priority)
    return pb.SubmitJobRequest(parent=P, job=job, request_id=request_id)


def pipeline_spec(**fields: Any) -> pb.PipelineSpec:
    source = training_set_pb2.SourceSpine(source=f"{P}/sources/landed", label="late")
    values: dict[str, Any] = {
        "model": MODEL,
        "feature_set": f"{P}/featureSets/late",
        "spine": training_set_pb2.Spine(source=source),
        "train": pb.TrainSpec(experiment=f"{P}/experiments/late", workers=1),
        **fields,
    }
    return pb.PipelineSpec(**values)


def start_pipeline(request_id: str = "", **fields: Any) -> pb.StartPipelineRunRequest:
    return pb.StartPipelineRunRequest(parent=P, spec=pipeline_spec(**fields), request_id=request_id)


def set_policy(request_id: str = "", **fields: Any) -> pb.SetRetrainingPolicyRequest:
    values: dict[str, Any] = {"name": POLICY, "pipeline": pipeline_spec(), **fields}
    return pb.SetRetrainingPolicyRequest(policy=pb.RetrainingPolicy(**values), request_id=request_id)
