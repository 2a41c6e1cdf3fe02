"""Models, versions, stages and feature uses ↔ protobuf."""

from __future__ import annotations

from collections.abc import Iterable

from flywheel_common.signature import Signature
from flywheel_common.signature_messages import (
    from_message,
    signature_from_message,
    signature_message,
    to_message,
)
from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.api.convert import to_timestamp
from flywheel_registry.api.convert_policies import (
    gate_policy,
    gate_policy_to_proto,
    rollout_policy,
    rollout_policy_to_proto,
)
from flywheel_registry.api.errors import InvalidStage
from flywheel_registry.models.catalog import MUTABLE_FIELDS
from flywheel_registry.models.errors import InvalidGoldenRows
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import Artifact, FeatureUse, GoldenRows, ModelVersion
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.stages.transitions import Stage


def model(message: pb.Model, name: str) -> Model:
    return Model(
        name,
        message.description,
        message.owner,
        dict(message.tags),
        gate_policy(message.gate_policy),
        rollout_policy(message.rollout_policy),
    )


def populated_fields(message: pb.Model) -> list[str]:
    """The mutable fields that are set in the message: what an update without a mask changes."""
    return [field.name for field, _ in message.ListFields() if field.name in MUTABLE_FIELDS]


def model_to_proto(value: Model) -> pb.Model:
    return pb.Model(
        name=value.name,
        description=value.description,
        owner=value.owner,
        tags=value.tags,
        gate_policy=gate_policy_to_proto(value.gate_policy),
        rollout_policy=rollout_policy_to_proto(value.rollout_policy),
        production_release=ReleaseName.of(value.name, value.production_release),
        production_version=VersionName.of(value.name, value.production_version),
        created_at=to_timestamp(value.created_at),
        etag=value.etag,
        variants=[
            pb.Variant(
                name=one.name,
                release=ReleaseName.of(value.name, one.release),
                percent=one.percent,
                shadow_percent=one.shadow_percent,
            )
            for one in value.variants
        ],
    )


def version(message: pb.ModelVersion, model_name: str) -> ModelVersion:
    return ModelVersion(
        model=model_name,
        training_run=message.training_run,
        framework=message.framework,
        metrics=dict(message.metrics),
        feature_set=message.feature_set,
        training_dataset=message.training_dataset,
        signature=signature_from_message(message.signature),
        artifacts=tuple(Artifact(a.name, a.size_bytes, a.sha256) for a in message.artifacts),
        golden_rows=_golden_rows(message.golden_rows),
        tags=dict(message.tags),
        description=message.description,
        parent_version=message.parent_version,
        cause_alert=message.cause_alert,
        pipeline_run=message.pipeline_run,
        registered_by=message.registered_by,
    )


def _golden_rows(message: pb.GoldenRows) -> GoldenRows:
    tensors = tuple(map(from_message, message.tensors))
    output = from_message(message.output) if message.HasField("output") else None
    golden = GoldenRows(tensors, output, message.tolerance)
    if message.row_count not in (0, golden.row_count):
        raise InvalidGoldenRows(
            f"row_count is {message.row_count}, the golden output has {golden.row_count} rows."
        )
    return golden


def _golden_to_proto(golden: GoldenRows) -> pb.GoldenRows:
    return pb.GoldenRows(
        row_count=golden.row_count,
        tolerance=golden.tolerance,
        tensors=map(to_message, golden.tensors),
        output=to_message(golden.output) if golden.output is not None else None,
    )


def version_to_proto(value: ModelVersion) -> pb.ModelVersion:
    return pb.ModelVersion(
        name=value.name,
        stage=stage_to_proto(value.stage),
        training_run=value.training_run,
        framework=value.framework,
        metrics=value.metrics,
        feature_set=value.feature_set,
        training_dataset=value.training_dataset,
        signature=signature_message(value.signature) if value.signature != Signature() else None,
        artifacts=[
            pb.Artifact(name=a.name, size_bytes=a.size_bytes, sha256=a.sha256) for a in value.artifacts
        ],
        artifact_state=f"ARTIFACT_STATE_{value.artifact_state}",
        golden_rows=_golden_to_proto(value.golden_rows),
        tags=value.tags,
        description=value.description,
        parent_version=value.parent_version,
        cause_alert=value.cause_alert,
        pipeline_run=value.pipeline_run,
        registered_at=to_timestamp(value.registered_at),
        registered_by=value.registered_by,
        promoted_by=value.promoted_by,
        promoted_at=to_timestamp(value.promoted_at),
        check_problems=value.check_problems or (),
    )


def versions_page(
    versions: Iterable[ModelVersion], next_page_token: str
) -> registry_pb2.ListModelVersionsResponse:
    return registry_pb2.ListModelVersionsResponse(
        model_versions=map(version_to_proto, versions), next_page_token=next_page_token
    )


def production_page(version: ModelVersion | None) -> registry_pb2.ListModelVersionsResponse:
    """Return the list of the versions of a model in PRODUCTION, which are one or none."""
    return versions_page([version] if version is not None else [], "")


def feature_use_to_proto(use: FeatureUse) -> registry_pb2.FeatureUse:
    return registry_pb2.FeatureUse(
        feature_set=use.feature_set,
        model_version=VersionName.of(use.model, use.number),
        stage=stage_to_proto(use.stage),
    )


def stage_to_proto(stage: Stage) -> str:
    return f"STAGE_{stage}"


def stage(number: int) -> Stage | None:
    """Parse a stage; None for unspecified. Raises InvalidStage."""
    if number not in pb.Stage.values():
        raise InvalidStage(f"{number} is not a stage of a model version: use a value of the enum Stage.")
    name = pb.Stage.Name(number).removeprefix("STAGE_")
    return None if name == "UNSPECIFIED" else Stage(name)
