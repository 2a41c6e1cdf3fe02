"""Jobs that evaluate and export models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from flywheel.connection import timestamp
from flywheel.errors import SourceError
from flywheel_protos.trainer.v1 import evaluation_pb2, export_pb2, trainer_pb2
from flywheel_protos.types.v1 import tensor_pb2

Path = Callable[[str, str], str]
"""(collection, id or full name) → full resource name in the client's project."""


@dataclass(frozen=True)
class EvaluateJob:
    """Metrics of a model on labelled rows, with intervals, by slice, and against the champion.

    >>> job = fw.EvaluateJob(experiment="late", model_version=version, training_set=training_set,
    ...                      slices=("origin",), record_evidence=True)
    >>> run = await client.run_job(job)
    """

    experiment: str
    model_version: str = ""
    """`{model}/versions/{version}`, also with the project before it; or `run`."""
    run: str = ""
    """A run that exported a model."""
    training_set: str = ""
    """Rows of a training set; or `parquet_uri`."""
    parquet_uri: str = ""
    """`s3://bucket/prefix` of Parquet files with the model's inputs."""
    kind: str = ""
    """`BINARY`, `MULTICLASS` or `REGRESSION`: the job is refused for another one; empty: any."""
    label: str = "label"
    weight: str = ""
    """Column with weights; empty: all rows count the same."""
    slices: Sequence[str] = ()
    """Columns whose values are reported one by one."""
    start_time: datetime | None = None
    end_time: datetime | None = None
    """Rows with an `event_timestamp` from `start_time` on and before `end_time`; naive times are UTC."""
    champion: str | None = ""
    """Version to compare with; empty: the one that production serves; None: no comparison."""
    beta: float = 1.0
    """Of the F-beta by which the threshold is chosen."""
    false_positive_cost: float | None = None
    false_negative_cost: float | None = None
    """With both, the threshold is chosen by cost."""
    threshold: float | None = None
    """Threshold of the decisions that the metrics count; None: the model's own, or the chosen one."""
    bootstrap_samples: int = 200
    confidence: float = 0.95
    seed: int = 0
    record_evidence: bool = False
    """Whether the registry's gates read the result."""
    cpus: float = 0.0
    """0: the setting of the trainer."""

    def message(self, path: Path) -> trainer_pb2.Job:
        """The job as protobuf. Raises SourceError for one cost without the other."""
        if (self.false_positive_cost is None) != (self.false_negative_cost is None):
            raise SourceError("Give both false_positive_cost and false_negative_cost, or none of them.")
        choice = evaluation_pb2.ThresholdChoice(used=self.threshold)
        if self.false_positive_cost is not None and self.false_negative_cost is not None:
            costs = evaluation_pb2.DecisionCosts(
                false_positive=self.false_positive_cost, false_negative=self.false_negative_cost
            )
            choice.costs.CopyFrom(costs)
        else:
            choice.beta = self.beta
        spec = evaluation_pb2.EvaluateSpec(
            experiment=path("experiments", self.experiment),
            kind=_enum(tensor_pb2.OutputKind.keys(), "OUTPUT_KIND", self.kind, "kind"),
            label_column=self.label,
            weight_column=self.weight,
            slice_columns=self.slices,
            start_time=timestamp(self.start_time) if self.start_time else None,
            end_time=timestamp(self.end_time) if self.end_time else None,
            champion=path("models", self.champion) if self.champion else "",
            without_champion=self.champion is None,
            threshold=choice,
            bootstrap_samples=self.bootstrap_samples,
            confidence=self.confidence,
            seed=self.seed,
            record_evidence=self.record_evidence,
            cpus=self.cpus,
        )
        _set_one(
            spec,
            {
                "model_version": self.model_version and path("models", self.model_version),
                "run": self.run and path("runs", self.run),
            },
        )
        _set_one(
            spec,
            {
                "training_set": self.training_set and path("trainingSets", self.training_set),
                "parquet_uri": self.parquet_uri,
            },
        )
        return trainer_pb2.Job(evaluate=spec)


@dataclass(frozen=True)
class ExportJob:
    """A model in another number format, checked against its source.

    >>> job = fw.ExportJob(experiment="late", model_version=version, training_set=training_set,
    ...                    format="INT8_STATIC")
    >>> run = await client.run_job(job)
    """

    experiment: str
    model_version: str = ""
    """`{model}/versions/{version}`, also with the project before it; or `run`."""
    run: str = ""
    """A run that exported a model."""
    training_set: str = ""
    """Rows for the ranges of activations, the calibration and the comparison."""
    format: str = "INT8_STATIC"
    """`FLOAT32`, `FLOAT16`, `INT8_DYNAMIC` or `INT8_STATIC`."""
    max_flip_share: float | None = None
    max_log_loss_increase: float | None = None
    max_auc_loss: float | None = None
    max_rmse_increase: float | None = None
    """How far the model may differ from its source; None: the defaults of the trainer."""
    calibration_rows: int = 0
    evaluation_rows: int = 0
    """0: 2,000 and 20,000."""
    per_channel: bool = False
    start_time: datetime | None = None
    end_time: datetime | None = None
    seed: int = 0
    cpus: float = 0.0
    """0: the setting of the trainer."""

    def message(self, path: Path) -> trainer_pb2.Job:
        """The job as protobuf. Raises SourceError for an unknown format."""
        spec = export_pb2.ExportSpec(
            experiment=path("experiments", self.experiment),
            training_set=self.training_set and path("trainingSets", self.training_set),
            format=_enum(export_pb2.ExportFormat.keys(), "EXPORT_FORMAT", self.format, "format"),
            policy=export_pb2.ExportPolicy(
                max_flip_share=self.max_flip_share,
                max_log_loss_increase=self.max_log_loss_increase,
                max_auc_loss=self.max_auc_loss,
                max_rmse_increase=self.max_rmse_increase,
            ),
            calibration_rows=self.calibration_rows,
            evaluation_rows=self.evaluation_rows,
            per_channel=self.per_channel,
            start_time=timestamp(self.start_time) if self.start_time else None,
            end_time=timestamp(self.end_time) if self.end_time else None,
            seed=self.seed,
            cpus=self.cpus,
        )
        _set_one(
            spec,
            {
                "model_version": self.model_version and path("models", self.model_version),
                "run": self.run and path("runs", self.run),
            },
        )
        return trainer_pb2.Job(export=spec)


def _set_one(spec: object, fields: dict[str, str]) -> None:
    """Set the member of a oneof that is given. Raises SourceError unless there is exactly one."""
    given = [name for name, value in fields.items() if value]
    if len(given) != 1:
        raise SourceError(f"Give exactly one of {' and '.join(fields)}.")
    setattr(spec, given[0], fields[given[0]])


def _enum(names: Sequence[str], prefix: str, name: str, field: str) -> str:
    """The full name of an enum's value; the zero value for an empty one. Raises SourceError if unknown."""
    full = f"{prefix}_{name or 'UNSPECIFIED'}"
    if full not in names:
        known = ", ".join(one.removeprefix(f"{prefix}_") for one in names[1:])
        raise SourceError(f"{field} is {name!r}, but must be one of {known}.")
    return full
