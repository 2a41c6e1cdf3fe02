"""Specifications, runs, jobs, policies and training rows of the trainer's tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from flywheel_job.outcome import Artifact, MetricPoint
from flywheel_job.recipes.tabular.spec import Hyperparameters
from flywheel_job.tuning.settings import Direction, FloatRange, IntRange, Objective, Tpe, TuneSettings
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.export_spec import ExportPolicy, ExportSpec
from flywheel_trainer.jobs.job import Job, JobName
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.model_spec import ModelSource
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.tune_spec import TuneSpec
from flywheel_trainer.pipelines.graph import Graph, GraphStep, Source
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, PipelineSpec
from flywheel_trainer.pipelines.standard import standard_run
from flywheel_trainer.policies.decision import Drift
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.runs.run import Experiment, ExperimentName, RunName

AT = datetime(2026, 1, 1, tzinfo=UTC)
"""Wall-clock time at which things are created."""
WINDOW_END = datetime(2013, 6, 1, 12, tzinfo=UTC)
"""Event time at which drift windows end."""
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
EXPERIMENT = Experiment(ExperimentName("p", "late"), "why", {"a": "b"})
ARTIFACT = Artifact("model.onnx", 10, "ab" * 32, "s3://b/k")
TRAINING_SET = "projects/p/trainingSets/t"
TRAIN_SPEC = TrainSpec(
    "late", TRAINING_SET, Hyperparameters(hidden_sizes=(8, 4), epochs=3, learning_rate=0.01), workers=2
)

TUNE_SETTINGS = TuneSettings(
    {"learning_rate": FloatRange(1e-3, 1e-1, log=True), "epochs": IntRange(1, 3)},
    (Objective("val_auc", Direction.MAXIMIZE),),
    Tpe(),
    max_trials=20,
    parallel_trials=3,
)
TUNE_SPEC = TuneSpec(TRAIN_SPEC, TUNE_SETTINGS)


def tune_job(number: str = "1", **fields: Any) -> Job:
    """TUNE job `job-NUMBER` with run `run-NUMBER` in project p."""
    name, run = JobName("p", f"job-{number}"), RunName("p", f"run-{number}")
    return Job(name, TUNE_SPEC, run, kind=TuneSpec.KIND, **fields)


EVALUATE_SPEC = EvaluateSpec(
    "late",
    ModelSource("projects/p/models/late/versions/2"),
    TRAINING_SET,
    kind="BINARY",
    label_column="label",
    weight_column="weight",
    slice_columns=("origin", "carrier"),
    start=AT,
    end=AT + 7 * DAY,
    champion="projects/p/models/late/versions/1",
    costs=(1.0, 5.0),
    threshold=0.25,
    bootstrap_samples=0,
    confidence=0.9,
    seed=7,
    record_evidence=True,
    cpus=0.5,
    limits=Limits(600.0),
)
EXPORT_SPEC = ExportSpec(
    "late",
    ModelSource(run="projects/p/runs/run-9"),
    TRAINING_SET,
    "INT8_STATIC",
    ExportPolicy(0.0, 0.1, 0.2, 0.3),
    10,
    20,
    per_channel=True,
    start=AT,
    seed=7,
    cpus=2.0,
    limits=Limits(60.0),
)


def job(number: str = "1", **fields: Any) -> Job:
    """Job `job-NUMBER` with run `run-NUMBER` in project p."""
    return Job(JobName("p", f"job-{number}"), TRAIN_SPEC, RunName("p", f"run-{number}"), **fields)


def metric_point(key: str, step: int, value: float) -> MetricPoint:
    return MetricPoint(key, step, value, step * 1000)


def pipeline_spec(project: str = "p", **fields: Any) -> PipelineSpec:
    spec = PipelineSpec(
        model=f"projects/{project}/models/late",
        feature_set=f"projects/{project}/featureSets/late/versions/1",
        spine={"source": {"source": f"projects/{project}/sources/landed", "label": "late"}},
        train=replace(TRAIN_SPEC, training_set=""),
        threshold=0.25,
        segment_keys=("origin", "carrier"),
        start_rollout=True,
    )
    return replace(spec, **fields)


def pipeline_run(run: str = "pipe-1", project: str = "p", **spec_fields: Any) -> PipelineRun:
    spec = pipeline_spec(project, **spec_fields)
    return standard_run(PipelineRunName(project, run), spec, AT, spec_to_json)


def policy(project: str = "p", **fields: Any) -> Policy:
    return replace(
        Policy(
            PolicyName(project, "late"),
            pipeline_spec(project),
            trigger_kinds=("DATA_DRIFT", "LABEL_DRIFT"),
            cooldown=7 * DAY,
            daily_budget=2,
            history=30 * DAY,
        ),
        **fields,
    )


def drift(
    alert: str = "a1", window_end: datetime = WINDOW_END, kind: str = "DATA_DRIFT", **fields: Any
) -> Drift:
    return Drift(f"projects/p/alerts/{alert}", "projects/p/models/late", kind, window_end, **fields)


def learnable_rows(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows in time order whose label depends on the features, with nulls in a number and a text column."""
    random = np.random.default_rng(seed)
    x, z = random.normal(20, 5, rows), random.exponential(size=rows)
    c, b = random.choice(["AA", "BB", "CC"], size=rows), random.random(rows) < 0.3
    logit = 0.4 * (x - 20) - 0.8 * z + np.select([c == "AA", c == "BB"], [1.0, -1.0], 0.2) + 0.7 * b
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "carrier": c,
            "event_timestamp": [start + timedelta(minutes=i) for i in range(rows)],
            "v__x": [None if i % 20 == 0 else float(v) for i, v in enumerate(x)],
            "v__z": z,
            "v__c": [None if i % 50 == 0 else str(v) for i, v in enumerate(c)],
            "v__b": b,
            "label": label,
        }
    )


def score_graph(**params: Any) -> Graph:
    """A graph of one SCORE step, with these parameters; `scheduled_at` gives the time of the features."""
    spec = {
        "score": {"experiment": "projects/p/experiments/late", "release": "projects/p/models/late/releases/1"}
    }
    inputs = {"score.table_uri": Source(param="table"), "score.as_of": Source(param="scheduled_at")}
    used = {path: source for path, source in inputs.items() if source.param in params}
    return Graph((GraphStep("score", "job", spec, used),), params)
