"""Specifications of EVALUATE and EXPORT jobs as protobuf messages."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from flywheel_protos.trainer.v1 import evaluation_pb2, export_pb2
from flywheel_protos.types.v1 import tensor_pb2
from flywheel_trainer.encoding.spec_fields import duration, experiment_id, seconds_of, time_of, timestamp
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.export_spec import ExportPolicy, ExportSpec
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.model_spec import ModelSource
from flywheel_trainer.runs.run import ExperimentName

V = TypeVar("V")
_KIND, _FORMAT = "OUTPUT_KIND_", "EXPORT_FORMAT_"
_EVALUATE = EvaluateSpec("", ModelSource())
_EXPORT = ExportSpec("", ModelSource())
_POLICY = ExportPolicy()
_LIMITS = Limits()


def evaluate_spec_from_proto(spec: evaluation_pb2.EvaluateSpec) -> EvaluateSpec:
    """Zero values become defaults. Raises InvalidName."""
    choice = spec.threshold
    costs = (choice.costs.false_positive, choice.costs.false_negative)
    return EvaluateSpec(
        experiment=experiment_id(spec.experiment),
        source=ModelSource(spec.model_version, spec.run),
        training_set=spec.training_set,
        parquet_uri=spec.parquet_uri,
        kind=_enum_name(tensor_pb2.OutputKind, spec.kind, _KIND),
        label_column=spec.label_column or _EVALUATE.label_column,
        weight_column=spec.weight_column,
        slice_columns=tuple(spec.slice_columns),
        start=time_of(spec, "start_time"),
        end=time_of(spec, "end_time"),
        champion=spec.champion,
        without_champion=spec.without_champion,
        beta=choice.beta if choice.HasField("beta") else _EVALUATE.beta,
        costs=costs if choice.HasField("costs") else None,
        threshold=choice.used if choice.HasField("used") else None,
        bootstrap_samples=_given(spec, "bootstrap_samples", _EVALUATE.bootstrap_samples),
        confidence=spec.confidence or _EVALUATE.confidence,
        seed=spec.seed,
        record_evidence=spec.record_evidence,
        cpus=spec.cpus,
        limits=Limits(seconds_of(spec, "timeout", _LIMITS.timeout_seconds)),
    )


def evaluate_spec_to_proto(spec: EvaluateSpec, project: str) -> evaluation_pb2.EvaluateSpec:
    choice = evaluation_pb2.ThresholdChoice(used=spec.threshold)
    if spec.costs is None:
        choice.beta = spec.beta
    else:
        choice.costs.false_positive, choice.costs.false_negative = spec.costs
        choice.costs.SetInParent()
    return evaluation_pb2.EvaluateSpec(
        experiment=str(ExperimentName(project, spec.experiment)),
        **_source(spec.source),
        **({"training_set": spec.training_set} if spec.training_set else {"parquet_uri": spec.parquet_uri}),
        kind=f"{_KIND}{spec.kind or 'UNSPECIFIED'}",
        label_column=spec.label_column,
        weight_column=spec.weight_column,
        slice_columns=spec.slice_columns,
        start_time=timestamp(spec.start),
        end_time=timestamp(spec.end),
        champion=spec.champion,
        without_champion=spec.without_champion,
        threshold=choice,
        bootstrap_samples=spec.bootstrap_samples,
        confidence=spec.confidence,
        seed=spec.seed,
        record_evidence=spec.record_evidence,
        timeout=duration(spec.limits.timeout_seconds),
        cpus=spec.cpus,
    )


def export_spec_from_proto(spec: export_pb2.ExportSpec) -> ExportSpec:
    """Zero values become defaults. Raises InvalidName."""
    policy = spec.policy
    return ExportSpec(
        experiment=experiment_id(spec.experiment),
        source=ModelSource(spec.model_version, spec.run),
        training_set=spec.training_set,
        format=_enum_name(export_pb2.ExportFormat, spec.format, _FORMAT),
        policy=ExportPolicy(
            _given(policy, "max_flip_share", _POLICY.max_flip_share),
            _given(policy, "max_log_loss_increase", _POLICY.max_log_loss_increase),
            _given(policy, "max_auc_loss", _POLICY.max_auc_loss),
            _given(policy, "max_rmse_increase", _POLICY.max_rmse_increase),
        ),
        calibration_rows=spec.calibration_rows or _EXPORT.calibration_rows,
        evaluation_rows=spec.evaluation_rows or _EXPORT.evaluation_rows,
        per_channel=spec.per_channel,
        start=time_of(spec, "start_time"),
        end=time_of(spec, "end_time"),
        seed=spec.seed,
        cpus=spec.cpus,
        limits=Limits(seconds_of(spec, "timeout", _LIMITS.timeout_seconds)),
    )


def export_spec_to_proto(spec: ExportSpec, project: str) -> export_pb2.ExportSpec:
    return export_pb2.ExportSpec(
        experiment=str(ExperimentName(project, spec.experiment)),
        **_source(spec.source),
        training_set=spec.training_set,
        format=f"{_FORMAT}{spec.format or 'UNSPECIFIED'}",
        policy=export_pb2.ExportPolicy(**vars(spec.policy)),
        calibration_rows=spec.calibration_rows,
        evaluation_rows=spec.evaluation_rows,
        per_channel=spec.per_channel,
        start_time=timestamp(spec.start),
        end_time=timestamp(spec.end),
        seed=spec.seed,
        timeout=duration(spec.limits.timeout_seconds),
        cpus=spec.cpus,
    )


def _source(source: ModelSource) -> dict[str, str]:
    """The member of the oneof `model` that is set."""
    return {"run": source.run} if source.run else {"model_version": source.model_version}


def _given(message: Message, field: str, default: V) -> V:
    """An optional field, or its default."""
    found: V = getattr(message, field) if message.HasField(field) else default
    return found


def _enum_name(kinds: object, value: int, prefix: str) -> str:
    """The name without its prefix; empty for the zero value, and the number of an unknown value."""
    try:
        name: str = kinds.Name(value)  # type: ignore[attr-defined]
    except ValueError:
        return str(value)
    name = name.removeprefix(prefix)
    return "" if name == "UNSPECIFIED" else name
