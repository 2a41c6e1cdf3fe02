"""The standard graph: training set → train → evaluate → register → release → rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.pipelines.expansion import queued
from flywheel_trainer.pipelines.graph import Condition, Graph, GraphStep, Source
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, PipelineSpec

JobJson = Callable[[TrainSpec, str], Mapping[str, Any]]
"""The JSON form of a Job with this specification in a project."""


@dataclass(frozen=True)
class NewRows:
    """How many rows since a time a run needs; with fewer it ends without training."""

    count: int
    since: str
    """Time in the format of the spine."""


def standard_run(
    name: PipelineRunName,
    spec: PipelineSpec,
    event_time: datetime,
    job_json: JobJson,
    new_rows: NewRows | None = None,
    **fields: Any,
) -> PipelineRun:
    """A queued run of the standard graph."""
    graph = standard_graph(spec, name.project, job_json, new_rows)
    return queued(PipelineRun(name, event_time, graph, spec, spec.model, **fields))


def standard_graph(
    spec: PipelineSpec, project: str, job_json: JobJson, new_rows: NewRows | None = None
) -> Graph:
    """The graph of a PipelineSpec. Rows are counted by a training set of their own."""
    tabular = spec.train.code is None
    inputs = {
        "train.training_set" if tabular else "train.code.training_sets.train": Source(
            "training_set", "training_set"
        )
    }
    champion = []
    if spec.warm_start_from_champion and tabular:
        champion = [GraphStep("champion", "champion", {"model": spec.model})]
        inputs["train.tabular.warm_start"] = Source("champion", "weights_of")
    enough = (Condition("training_set", "row_count", ">=", spec.min_rows),) if spec.min_rows else ()
    counted: list[GraphStep] = []
    fresh: tuple[Condition, ...] = ()
    if new_rows is not None:
        spine = {**spec.spine, "source": {**spec.spine["source"], "start_time": new_rows.since}}
        counted = [GraphStep("new_rows", "training_set", {"feature_set": spec.feature_set, "spine": spine})]
        fresh = (Condition("new_rows", "row_count", ">=", new_rows.count),)
    steps = [
        *counted,
        GraphStep(
            "training_set",
            "training_set",
            {"feature_set": spec.feature_set, "spine": dict(spec.spine)},
            conditions=fresh,
        ),
        *champion,
        GraphStep(
            "train", "job", job_json(replace(spec.train, training_set=""), project), inputs, conditions=enough
        ),
        GraphStep(
            "evaluate",
            "compare",
            {"model": spec.model},
            {"run": Source("train", "run"), "training_set": Source("training_set", "training_set")},
        ),
        GraphStep(
            "register",
            "register",
            {"model": spec.model},
            {
                "run": Source("train", "run"),
                "training_set": Source("training_set", "training_set"),
                "metrics": Source("evaluate", "metrics"),
                "note": Source("evaluate", "note"),
            },
        ),
        GraphStep(
            "release",
            "release",
            {
                "threshold": spec.threshold,
                "segment_keys": list(spec.segment_keys),
                **({} if spec.fallback is None else {"fallback": dict(spec.fallback)}),
            },
            {"model_version": Source("register", "model_version"), "run": Source("train", "run")},
            conditions=(Condition("register", "passed", "==", True),),
        ),
        GraphStep(
            "rollout",
            "rollout",
            {},
            {"release": Source("release", "release")},
        ),
    ]
    return Graph(tuple(steps if spec.start_rollout else steps[:-1]))
