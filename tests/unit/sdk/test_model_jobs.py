"""fw.EvaluateJob and fw.ExportJob: the messages that they become, and what they refuse before sending."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import SourceError
from flywheel_protos.trainer.v1 import evaluation_pb2, export_pb2
from flywheel_protos.types.v1 import tensor_pb2
from flywheel_trainer.encoding.specs import spec_of
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.export_spec import ExportPolicy, ExportSpec
from flywheel_trainer.jobs.model_spec import ModelSource

VERSION = "projects/default/models/late/versions/2"
SET = "projects/default/trainingSets/one"
START = datetime(2026, 3, 1, tzinfo=UTC)


def path(collection: str, name: str) -> str:
    return name if name.startswith("projects/") else f"projects/default/{collection}/{name}"


def test_defaults_are_those_of_the_trainer() -> None:
    job = fw.EvaluateJob(experiment="late", model_version="late/versions/2", training_set="one")
    assert spec_of(job.message(path)) == EvaluateSpec("late", ModelSource(VERSION), SET)
    export = fw.ExportJob(experiment="late", model_version=VERSION, training_set="one")
    assert spec_of(export.message(path)) == ExportSpec("late", ModelSource(VERSION), SET, "INT8_STATIC")


def test_every_field_of_an_evaluation_is_sent() -> None:
    job = fw.EvaluateJob(
        experiment="late",
        run="run-1",
        parquet_uri="s3://b/rows/",
        kind="MULTICLASS",
        label="outcome",
        weight="weight",
        slices=["origin"],
        start_time=START,
        end_time=datetime(2026, 4, 1),
        champion=None,
        false_positive_cost=1.0,
        false_negative_cost=0.0,
        threshold=0.0,
        bootstrap_samples=0,
        confidence=0.9,
        seed=7,
        record_evidence=True,
        cpus=2.0,
    )
    message = job.message(path).evaluate
    assert message.kind == tensor_pb2.OUTPUT_KIND_MULTICLASS
    assert message.threshold.costs == evaluation_pb2.DecisionCosts(false_positive=1.0)
    assert spec_of(job.message(path)) == EvaluateSpec(
        "late",
        ModelSource(run="projects/default/runs/run-1"),
        parquet_uri="s3://b/rows/",
        kind="MULTICLASS",
        label_column="outcome",
        weight_column="weight",
        slice_columns=("origin",),
        start=START,
        end=datetime(2026, 4, 1, tzinfo=UTC),
        without_champion=True,
        costs=(1.0, 0.0),
        threshold=0.0,
        bootstrap_samples=0,
        confidence=0.9,
        seed=7,
        record_evidence=True,
        cpus=2.0,
    )


def test_every_field_of_an_export_is_sent() -> None:
    job = fw.ExportJob(
        experiment="late",
        run="run-1",
        training_set="one",
        format="FLOAT16",
        max_flip_share=0.0,
        max_log_loss_increase=0.1,
        max_auc_loss=0.2,
        max_rmse_increase=0.3,
        calibration_rows=10,
        evaluation_rows=20,
        per_channel=True,
        start_time=START,
        seed=7,
        cpus=2.0,
    )
    assert job.message(path).export.format == export_pb2.EXPORT_FORMAT_FLOAT16
    assert spec_of(job.message(path)) == ExportSpec(
        "late",
        ModelSource(run="projects/default/runs/run-1"),
        SET,
        "FLOAT16",
        ExportPolicy(0.0, 0.1, 0.2, 0.3),
        10,
        20,
        per_channel=True,
        start=START,
        seed=7,
        cpus=2.0,
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "exactly one of model_version and run"),
        ({"model_version": VERSION, "run": "run-1"}, "exactly one of model_version and run"),
        ({"model_version": VERSION}, "exactly one of training_set and parquet_uri"),
        ({"model_version": VERSION, "training_set": "one", "kind": "VECTORS"}, "kind is 'VECTORS'"),
        (
            {"model_version": VERSION, "training_set": "one", "false_positive_cost": 1.0},
            "both false_positive_cost and false_negative_cost",
        ),
    ],
)
def test_wrong_jobs_are_refused_before_anything_is_sent(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(SourceError, match=text):
        fw.EvaluateJob(experiment="late", **fields).message(path)


def test_an_unknown_format_is_refused() -> None:
    job = fw.ExportJob(experiment="late", model_version=VERSION, training_set="one", format="INT4")
    with pytest.raises(SourceError, match="format is 'INT4'"):
        job.message(path)
