"""Pipelines as code: a Python function builds a graph of typed steps, which is compiled to protobuf.

The function runs where it is compiled, never in a service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from flywheel.connection import Connection
from flywheel.definitions import load_module
from flywheel.errors import PipelineError
from flywheel.model_jobs import EvaluateJob, ExportJob
from flywheel.pipeline_values import LATER, Given, Item, Options, Output, Param, Step, source_of
from flywheel.score_job import ScoreJob, score_spec
from flywheel.source_archive import SourceArchive
from flywheel.train_job import TrainJob, pack_job, train_spec
from flywheel.tune_job import TuneJob, tune_spec
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.trainer.v1 import pipeline_graph_pb2 as pb
from flywheel_protos.trainer.v1 import trainer_pb2


@dataclass
class PipelineBuilder:
    """Collects the steps of one pipeline. Short names are names inside `project`."""

    project: str = "default"
    params: Mapping[str, Any] = field(default_factory=dict)
    graph: pb.PipelineGraph = field(default_factory=pb.PipelineGraph)
    archives: list[SourceArchive] = field(default_factory=list)
    """Source archives that the jobs of the graph need."""

    def param(self, name: str) -> Param:
        """A parameter that the pipeline declares. Raises PipelineError."""
        if name not in self.params:
            raise PipelineError(f"The pipeline has no parameter {name!r}.")
        return Param(name)

    def item(self, field: str = "") -> Item:
        """The value of this instance of a fan-out, or a field of it."""
        return Item(field)

    def training_set(
        self, step: str, *, feature_set: Given, spine: training_set_pb2.Spine, **options: Unpack[Options]
    ) -> Step:
        """Builds a training set. Outputs: `training_set`, `feature_set`, `row_count`, `content_hash`,
        and `categories.…`, the values of a text column that has at most 100, for `for_each`."""
        message = pb.TrainingSetStep(spine=spine)
        values = self._set(message, "feature_set", feature_set, "featureSets")
        return self._add(pb.GraphStep(id=step, training_set=message), values, options)

    def train(
        self,
        step: str,
        spec: TrainJob | trainer_pb2.TrainSpec,
        *,
        data: Step | str | Mapping[str, Step | str] | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """Runs a TRAIN job. Outputs: `job`, `run`, `metrics.…`, `artifacts.…`.

        `data` is a training set, or several by the names for `ctx.data(name)`. Paths of `values` begin with
        `train.`.
        """
        message = self._train_spec(spec)
        values = self._data(step, message, "train", data)
        return self.job(step, trainer_pb2.Job(train=message), _values=values, **options)

    def tune(
        self,
        step: str,
        job: TuneJob,
        *,
        data: Step | str | Mapping[str, Step | str] | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """Runs a TUNE job. Outputs: those of `train`, and `best_run`.

        `register` takes the run of the best trial. Paths of `values` begin with `tune.`.
        """
        base = self._train_spec(job.job)
        values = self._data(step, base, "tune.base", data)
        added = self.job(step, trainer_pb2.Job(tune=tune_spec(job, base)), _values=values, **options)
        return Step(added.id, "best_run")

    def evaluate(
        self,
        step: str,
        job: EvaluateJob,
        *,
        trained: Step | None = None,
        registered: Step | None = None,
        data: Step | str | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """Runs an EVALUATE job on the model of a run or of a registered version. Outputs: those of a job.

        With `record_evidence` of the job the registry's gates read the result.
        """
        return self._model_job(step, job, (trained, registered, data), options)

    def export(
        self,
        step: str,
        job: ExportJob,
        *,
        trained: Step | None = None,
        registered: Step | None = None,
        data: Step | str | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """Runs an EXPORT job. Outputs: those of a job; `register` takes its run."""
        return self._model_job(step, job, (trained, registered, data), options)

    def score(
        self, step: str, job: ScoreJob, *, released: Step | None = None, **options: Unpack[Options]
    ) -> Step:
        """Runs a SCORE job, with the release of an earlier step (`release`, `champion`) if one is given.

        Outputs: those of a job. Paths of `values` begin with `score.`.
        """
        values = {}
        if released is not None:
            job = replace(job, release=f"{LATER}/releases/1")
            values["score.release"] = released[released.release_output]
        spec = score_spec(job, Connection(self.project))
        return self.job(step, trainer_pb2.Job(score=spec), _values=values, **options)

    def job(
        self,
        step: str,
        job: trainer_pb2.Job,
        *,
        _values: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """Runs a job of any kind; only the specification of `job` is set."""
        spec = ParseDict(MessageToDict(job, preserving_proto_field_name=True), Struct())
        return self._add(pb.GraphStep(id=step, job=spec), dict(_values or {}), options)

    def champion(self, step: str, *, model: Given, **options: Unpack[Options]) -> Step:
        """Looks the champion of a model up. All outputs are empty texts if there is none.

        Outputs: `release_in_production`, `model_version_in_production`, and `weights_of`, the version if
        training can start from its weights.
        """
        message = pb.ChampionStep()
        values = self._set(message, "model", model, "models")
        added = self._add(pb.GraphStep(id=step, champion=message), values, options)
        return Step(added.id, release_output="release_in_production")

    def compare(
        self, step: str, *, model: Given, trained: Step, data: Step | str, **options: Unpack[Options]
    ) -> Step:
        """Evaluates the model of a run and the champion on the same rows.

        Outputs: `metrics.…` (`metrics.champion_auc` of the champion), `champion`, `note`.
        """
        message = pb.CompareStep()
        values = self._set(message, "model", model, "models")
        values |= self._set(message, "training_set", _named(data, "training_set"), "trainingSets")
        values["run"] = trained[trained.run_output]
        return self._add(pb.GraphStep(id=step, compare=message), values, options)

    def register(
        self,
        step: str,
        *,
        model: Given,
        trained: Step,
        data: Step | str | None = None,
        compared: Step | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """Registers the model of a run. Outputs: `model_version`, `passed` (the offline gate), `findings`.

        The evidence has the metrics of `compared`, or of the run's report. The training set is `data`, or
        that of the run.
        """
        message = pb.RegisterStep()
        values = self._set(message, "model", model, "models")
        values["run"] = trained[trained.run_output]
        if data is not None:
            values |= self._set(message, "training_set", _named(data, "training_set"), "trainingSets")
        if compared is not None:
            values |= {"metrics": compared["metrics"], "note": compared["note"]}
        return self._add(pb.GraphStep(id=step, register=message), values, options)

    def release(
        self,
        step: str,
        *,
        registered: Step,
        trained: Step,
        threshold: float = 0.0,
        fallback: model_pb2.Fallback | None = None,
        segment_keys: Sequence[str] = (),
        **options: Unpack[Options],
    ) -> Step:
        """Creates a release of a version that the gate passed.

        Outputs: `release`, and `threshold` if it has one; a regression has none.
        """
        message = pb.ReleaseStep(threshold=threshold, fallback=fallback, segment_keys=segment_keys)
        values = {"model_version": registered["model_version"], "run": trained[trained.run_output]}
        options["when"] = (registered["passed"].equals(True), *options.get("when", ()))
        return self._add(pb.GraphStep(id=step, release=message), values, options)

    def rollout(self, step: str, *, released: Step, reason: str = "", **options: Unpack[Options]) -> Step:
        """Starts the rollout of a release. Outputs: `rollout`, `state`."""
        message = pb.RolloutStep(reason=reason)
        return self._add(pb.GraphStep(id=step, rollout=message), {"release": released["release"]}, options)

    def select(
        self, step: str, of: Step, output: str, *, smallest: bool = False, **options: Unpack[Options]
    ) -> Step:
        """Chooses the instance of a fan-out with the largest (or smallest) output, and has its outputs."""
        message = pb.SelectStep(step=of.id, output=output, smallest=smallest)
        return self._add(pb.GraphStep(id=step, select=message), {}, options)

    def approval(self, step: str, message: str, **options: Unpack[Options]) -> Step:
        """Waits until a person approves. Outputs: `approved_by`, `reason`."""
        return self._add(pb.GraphStep(id=step, approval=pb.ApprovalStep(message=message)), {}, options)

    def _model_job(
        self,
        step: str,
        job: EvaluateJob | ExportJob,
        given: tuple[Step | None, Step | None, Step | str | None],
        options: Options,
    ) -> Step:
        trained, registered, data = given
        values: dict[str, Any] = {}
        if trained is not None:
            job, values["run"] = replace(job, run=LATER), trained[trained.run_output]
        if registered is not None:
            job, values["model_version"] = replace(job, model_version=LATER), registered["model_version"]
        if isinstance(data, Step):
            job, values["training_set"] = replace(job, training_set=LATER), data["training_set"]
        elif data is not None:
            job = replace(job, training_set=data)
        message = job.message(self._path)
        kind = message.WhichOneof("spec")
        return self.job(
            step, message, _values={f"{kind}.{name}": one for name, one in values.items()}, **options
        )

    def _train_spec(self, spec: TrainJob | trainer_pb2.TrainSpec) -> trainer_pb2.TrainSpec:
        if isinstance(spec, TrainJob):
            packed = pack_job(spec)
            if packed.archive is not None:
                self.archives.append(packed.archive)
            return train_spec(packed, self._path)
        message = trainer_pb2.TrainSpec()
        message.CopyFrom(spec)
        return message

    def _data(
        self,
        step: str,
        message: trainer_pb2.TrainSpec,
        path: str,
        data: Step | str | Mapping[str, Step | str] | None,
    ) -> dict[str, Any]:
        """Set the names of training sets in the message, and return those that the run sets."""
        values: dict[str, Any] = {}
        named = data if isinstance(data, Mapping) else {"train": data} if data is not None else {}
        for name, one in named.items():
            code = message.HasField("code")
            if not code and name != "train":
                raise PipelineError(f"Step {step!r}: only code has several training sets, such as {name!r}.")
            if isinstance(one, Step):
                field = f"code.training_sets.{name}" if code else "training_set"
                values[f"{path}.{field}"] = one["training_set"]
            elif code:
                message.code.training_sets[name] = self._path("trainingSets", one)
            else:
                message.training_set = self._path("trainingSets", one)
        return values

    def _add(self, step: pb.GraphStep, values: Mapping[str, Any], options: Options) -> Step:
        for path, value in {**values, **options.get("values", {})}.items():
            step.inputs[path].CopyFrom(source_of(value))
        step.after.extend(one.id for one in options.get("after", ()))
        for one in options.get("when", ()):
            step.conditions.append(
                pb.StepCondition(
                    left=source_of(one.left).step, operator=one.operator, right=ParseDict(one.right, Value())
                )
            )
        each = options.get("for_each")
        if isinstance(each, Param):
            step.for_each.param = each.name
        elif isinstance(each, Output):
            step.for_each.output.step, step.for_each.output.output = each.step, each.output
            step.for_each.at_most = options.get("at_most", 0)
        elif each is not None:
            step.for_each.values.extend(list(each))
        step.retries, step.cache = options.get("retries", 0), options.get("cache", False)
        for name in ("retry_delay", "timeout"):
            given: Any = options.get(name)
            if given is not None:
                duration = Duration()
                duration.FromTimedelta(given)
                getattr(step, name).CopyFrom(duration)
        if any(known.id == step.id for known in self.graph.steps):
            raise PipelineError(f"Two steps have the id {step.id!r}.")
        self.graph.steps.append(step)
        return Step(step.id)

    def _set(self, message: Any, field: str, value: Given, collection: str) -> dict[str, Any]:
        """Set a text now, or return it as a value that the run sets."""
        if isinstance(value, str):
            setattr(message, field, self._path(collection, value))
            return {}
        return {field: value}

    def _path(self, collection: str, name: str) -> str:
        return name if name.startswith("projects/") else f"projects/{self.project}/{collection}/{name}"


@dataclass(frozen=True)
class Pipeline:
    """A function that builds a graph, with the name and the parameters of the pipeline."""

    name: str
    build: Callable[[PipelineBuilder], None]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class CompiledPipeline:
    """What is sent to the trainer."""

    name: str
    graph: pb.PipelineGraph
    archives: tuple[SourceArchive, ...]


def pipeline(
    name: str, params: Mapping[str, Any] | None = None
) -> Callable[[Callable[[PipelineBuilder], None]], Pipeline]:
    """Declares a function as a pipeline. A parameter with the default None needs a value in every run.

    >>> @fw.pipeline("late-weekly", params={"end": None})
    ... def weekly(p: fw.PipelineBuilder) -> None: ...
    """
    return lambda build: Pipeline(name, build, params or {})


def compile_pipeline(definition: Pipeline, project: str = "default") -> CompiledPipeline:
    """Run the function and return its graph. Raises PipelineError, SourceError."""
    builder = PipelineBuilder(project, definition.params)
    for name, default in definition.params.items():
        builder.graph.params[name].CopyFrom(ParseDict(default, Value()))
    definition.build(builder)
    if not builder.graph.steps:
        raise PipelineError(f"The pipeline {definition.name!r} has no steps.")
    return CompiledPipeline(definition.name, builder.graph, tuple(builder.archives))


def pipelines_in(file: str | Path) -> list[Pipeline]:
    """The pipelines that a Python file declares. Raises PipelineError if there are none."""
    found = [one for one in vars(load_module(str(file))).values() if isinstance(one, Pipeline)]
    if not found:
        raise PipelineError(f"{file} declares no pipeline: use @fw.pipeline.")
    return found


def _named(data: Step | str, output: str) -> Given:
    return data[output] if isinstance(data, Step) else data
