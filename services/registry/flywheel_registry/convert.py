"""Values of the registry to protobuf and back. Parsing raises InvalidArgument; writing cannot fail."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common import topics
from flywheel_common.errors import InvalidArgument
from flywheel_common.events import build_event
from flywheel_protos.events.v1 import lifecycle_pb2
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry import audit
from flywheel_registry.names import EvidenceName, ReleaseName, RolloutName, VersionName
from flywheel_registry.policy import GatePolicy, InvalidPolicy, MetricThreshold, RolloutPolicy
from flywheel_registry.resources import (
    Artifact,
    Evidence,
    FeatureUse,
    Gateway,
    GoldenRows,
    Isotonic,
    Model,
    ModelVersion,
    ObservedModel,
    Platt,
    Release,
    Rollout,
    RolloutChanged,
    ServedRelease,
    ServingModel,
    SignatureInput,
    StageChanged,
)
from flywheel_registry.rollout import Comparison, RolloutState, Variant
from flywheel_registry.serving import Span
from flywheel_registry.stages import Stage

SOURCE = "flywheel-registry"


def check_text(message: Message) -> None:
    """PostgreSQL cannot hold NUL in text. Raises InvalidArgument INVALID_TEXT naming the field."""
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_STRING:
            texts = [value] if isinstance(value, str) else value
            if any("\0" in text for text in texts):
                raise InvalidArgument(
                    f"{descriptor.name} holds a NUL character.", reason="INVALID_TEXT", field=descriptor.name
                )
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            entry = descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
            if entry:
                texts = [*value, *(v for v in value.values() if isinstance(v, str))]
                if any("\0" in text for text in texts if isinstance(text, str)):
                    raise InvalidArgument(
                        f"{descriptor.name} holds a NUL character.",
                        reason="INVALID_TEXT",
                        field=descriptor.name,
                    )
            else:
                for part in [value] if isinstance(value, Message) else value:
                    check_text(part)


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """None stays None: an unset field."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp


def from_timestamp(stamp: Timestamp) -> datetime:
    """UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def to_duration(seconds: float | None) -> Duration | None:
    """None stays None: an unset field."""
    if seconds is None:
        return None
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


# ------------------------------------------------------------------------------------------------------ policies


def gate_policy(message: pb.GatePolicy) -> GatePolicy:
    def bound(threshold: pb.MetricThreshold, field: str) -> float | None:
        return getattr(threshold, field) if threshold.HasField(field) else None

    return GatePolicy(
        tuple(
            MetricThreshold(
                t.metric, bound(t, "min"), bound(t, "max"), bound(t, "min_delta"), bound(t, "max_delta")
            )
            for t in message.offline
        ),
        _count(message.min_evaluation_rows, "gate_policy.min_evaluation_rows"),
    )


def _count(value: int, field: str) -> int:
    """A count that the database can hold."""
    if value >= 1 << 53:
        raise InvalidPolicy(f"{field} is too large: at most 2^53 - 1.")
    return value


def _gate_policy_to_proto(policy: GatePolicy) -> pb.GatePolicy:
    thresholds = [
        pb.MetricThreshold(
            metric=t.metric, min=t.min, max=t.max, min_delta=t.min_delta, max_delta=t.max_delta
        )
        for t in policy.offline
    ]
    return pb.GatePolicy(offline=thresholds, min_evaluation_rows=policy.min_evaluation_rows)


def rollout_policy(message: pb.RolloutPolicy) -> RolloutPolicy:
    return RolloutPolicy(
        canary_percents=tuple(message.canary_percents),
        shadow_percent=message.shadow_percent,
        shadow_min_labelled=_count(message.shadow_min_labelled, "rollout_policy.shadow_min_labelled"),
        shadow_max_log_loss_delta=message.shadow_max_log_loss_delta,
        min_bake_seconds=_seconds(message.min_bake),
        canary_min_predictions=_count(
            message.canary_min_predictions, "rollout_policy.canary_min_predictions"
        ),
        canary_max_log_loss_delta=message.canary_max_log_loss_delta,
        max_error_rate=message.max_error_rate,
        max_p99_ms=message.max_p99_ms,
        max_score_shift=message.max_score_shift,
        max_step_seconds=_seconds(message.max_step) if message.HasField("max_step") else None,
        alpha=message.alpha,
    )


def _rollout_policy_to_proto(policy: RolloutPolicy) -> pb.RolloutPolicy:
    return pb.RolloutPolicy(
        canary_percents=policy.canary_percents,
        shadow_percent=policy.shadow_percent,
        shadow_min_labelled=policy.shadow_min_labelled,
        shadow_max_log_loss_delta=policy.shadow_max_log_loss_delta,
        min_bake=to_duration(policy.min_bake_seconds or None),
        canary_min_predictions=policy.canary_min_predictions,
        canary_max_log_loss_delta=policy.canary_max_log_loss_delta,
        max_error_rate=policy.max_error_rate,
        max_p99_ms=policy.max_p99_ms,
        max_score_shift=policy.max_score_shift,
        max_step=to_duration(policy.max_step_seconds),
        alpha=policy.alpha,
    )


# ----------------------------------------------------------------------------------- models, versions, releases


def model(message: pb.Model, name: str) -> Model:
    return Model(
        name,
        message.description,
        message.owner,
        dict(message.tags),
        gate_policy(message.gate_policy),
        rollout_policy(message.rollout_policy),
    )


def model_to_proto(value: Model) -> pb.Model:
    return pb.Model(
        name=value.name,
        description=value.description,
        owner=value.owner,
        tags=value.tags,
        gate_policy=_gate_policy_to_proto(value.gate_policy),
        rollout_policy=_rollout_policy_to_proto(value.rollout_policy),
        production_release=ReleaseName.of(value.name, value.production_release),
        production_version=VersionName.of(value.name, value.production_version),
        created_at=to_timestamp(value.created_at),
        etag=value.etag,
    )


def version(message: pb.ModelVersion, model_name: str) -> ModelVersion:
    golden = message.golden_rows
    return ModelVersion(
        model=model_name,
        training_run=message.training_run,
        framework=message.framework,
        metrics=dict(message.metrics),
        feature_set=message.feature_set,
        training_dataset=message.training_dataset,
        signature=tuple(
            SignatureInput(i.name, int(i.data_type), tuple(i.vocabulary)) for i in message.signature.inputs
        ),
        artifacts=tuple(Artifact(a.name, a.size_bytes, a.sha256) for a in message.artifacts),
        golden_rows=GoldenRows(golden.row_count, golden.inputs, golden.scores, golden.tolerance),
        tags=dict(message.tags),
        description=message.description,
        parent_version=message.parent_version,
        cause_alert=message.cause_alert,
        pipeline_run=message.pipeline_run,
        registered_by=message.registered_by,
    )


def feature_use_to_proto(use: FeatureUse) -> registry_pb2.FeatureUse:
    return registry_pb2.FeatureUse(
        feature_set=use.feature_set,
        model_version=VersionName.of(use.model, use.number),
        stage=stage_to_proto(use.stage),
    )


def version_to_proto(value: ModelVersion) -> pb.ModelVersion:
    golden = value.golden_rows
    return pb.ModelVersion(
        name=value.name,
        stage=stage_to_proto(value.stage),
        training_run=value.training_run,
        framework=value.framework,
        metrics=value.metrics,
        feature_set=value.feature_set,
        training_dataset=value.training_dataset,
        signature=pb.Signature(
            inputs=[
                pb.SignatureInput(name=i.name, data_type=i.data_type, vocabulary=i.vocabulary)  # type: ignore[arg-type]
                for i in value.signature
            ]
        ),
        artifacts=[
            pb.Artifact(name=a.name, size_bytes=a.size_bytes, sha256=a.sha256) for a in value.artifacts
        ],
        artifact_state=f"ARTIFACT_STATE_{value.artifact_state}",
        golden_rows=pb.GoldenRows(
            row_count=golden.row_count, inputs=golden.inputs, scores=golden.scores, tolerance=golden.tolerance
        ),
        tags=value.tags,
        description=value.description,
        parent_version=value.parent_version,
        cause_alert=value.cause_alert,
        pipeline_run=value.pipeline_run,
        registered_at=to_timestamp(value.registered_at),
        registered_by=value.registered_by,
        promoted_by=value.promoted_by,
        promoted_at=to_timestamp(value.promoted_at),
    )


def stage_to_proto(stage: Stage) -> str:
    return f"STAGE_{stage}"


def stage(number: int) -> Stage | None:
    """None for unspecified."""
    if number not in pb.Stage.values():
        raise InvalidArgument(f"{number} is no stage of a model version.", reason="INVALID_STAGE")
    name = pb.Stage.Name(number).removeprefix("STAGE_")
    return None if name == "UNSPECIFIED" else Stage(name)


def release(message: pb.Release, model_name: str) -> Release:
    version_name = VersionName.parse(message.model_version)
    if version_name.parent != model_name:
        raise InvalidArgument(f"{version_name} is not a version of {model_name}.", reason="WRONG_MODEL")
    calibration: Platt | Isotonic | None = None
    match message.calibration.WhichOneof("kind"):
        case "platt":
            calibration = Platt(message.calibration.platt.slope, message.calibration.platt.intercept)
        case "isotonic":
            calibration = Isotonic(
                tuple(message.calibration.isotonic.x), tuple(message.calibration.isotonic.y)
            )
    fallback = message.fallback
    return Release(
        model_name,
        version_name.number,
        feature_set=message.feature_set,
        calibration=calibration,
        threshold=message.threshold,
        has_fallback=message.HasField("fallback"),
        default_score=fallback.default_score if fallback.HasField("default_score") else None,
        cached_max_age_seconds=_seconds(fallback.cached_max_age)
        if fallback.HasField("cached_max_age")
        else None,
        segment_keys=tuple(message.segment_keys),
    )


def release_to_proto(value: Release) -> pb.Release:
    message = pb.Release(
        name=value.name,
        model_version=VersionName.of(value.model, value.version),
        feature_set=value.feature_set,
        threshold=value.threshold,
        segment_keys=value.segment_keys,
        created_at=to_timestamp(value.created_at),
        created_by=value.created_by,
    )
    match value.calibration:
        case Platt(slope, intercept):
            message.calibration.platt.CopyFrom(pb.Calibration.Platt(slope=slope, intercept=intercept))
        case Isotonic(x, y):
            message.calibration.isotonic.CopyFrom(pb.Calibration.Isotonic(x=x, y=y))
    if value.has_fallback:
        fallback = pb.Fallback(
            default_score=value.default_score, cached_max_age=to_duration(value.cached_max_age_seconds)
        )
        message.fallback.CopyFrom(fallback)
    return message


# ------------------------------------------------------------------------------- rollouts, evidence, audit, spans


def rollout_to_proto(value: Rollout) -> pb.Rollout:
    decision = f"ROLLOUT_DECISION_{value.last_decision or 'UNSPECIFIED'}"
    return pb.Rollout(
        name=value.name,
        champion_release=ReleaseName.of(value.model, value.champion),
        challenger_release=ReleaseName.of(value.model, value.challenger),
        state=_rollout_state(value.progress.state),
        challenger_percent=value.progress.challenger_percent,
        policy=_rollout_policy_to_proto(value.policy),
        step_started_at=to_timestamp(value.step_started_at),
        last_decision=decision,
        reason=value.reason,
        history=[
            pb.RolloutStep(
                state=_rollout_state(RolloutState(step.state)),
                challenger_percent=step.challenger_percent,
                entered_at=to_timestamp(step.entered_at),
                reason=step.reason,
                evidence=EvidenceName.of(value.model, step.evidence),
            )
            for step in value.history
        ],
        created_at=to_timestamp(value.created_at),
        ended_at=to_timestamp(value.ended_at),
        created_by=value.created_by,
    )


def _rollout_state(state: RolloutState) -> str:
    return f"ROLLOUT_STATE_{state}"


def evidence_to_proto(value: Evidence) -> pb.Evidence:
    return pb.Evidence(
        name=value.name,
        kind=value.kind,
        model_version=VersionName.of(value.model, value.version),
        values=value.values,
        findings=value.findings,
        passed=value.passed,
        created_at=to_timestamp(value.created_at),
    )


def audit_to_proto(entry: audit.AuditEntry) -> pb.AuditEntry:
    return pb.AuditEntry(
        sequence=entry.sequence,
        at=to_timestamp(entry.at),
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        from_state=entry.from_state,
        to_state=entry.to_state,
        reason=entry.reason,
        evidence=entry.evidence,
        hash=entry.hash,
    )


def span_to_proto(model_name: str, span: Span) -> registry_pb2.ServingSpan:
    message = registry_pb2.ServingSpan(
        release=ReleaseName.of(model_name, span.release),
        model_version=VersionName.of(model_name, span.version),
        until=to_timestamp(span.until),
        reason=span.reason,
    )
    # `from` is a word of the language.
    getattr(message, "from").FromDatetime(span.since.astimezone(UTC))
    return message


# -------------------------------------------------------------------------------------------- serving, gateways


def _served_to_proto(value: ServedRelease | None) -> pb.ServingRelease | None:
    if value is None:
        return None
    return pb.ServingRelease(
        release=release_to_proto(value.release), model_version=version_to_proto(value.version)
    )


def serving_to_proto(value: ServingModel) -> pb.ServingModel:
    return pb.ServingModel(
        model=value.model,
        generation=value.generation,
        champion=_served_to_proto(value.champion),
        challenger=_served_to_proto(value.challenger),
        rollout=RolloutName.of(value.model, value.rollout),
        shadow_percent=value.shadow_percent,
        challenger_percent=value.challenger_percent,
        warm=[message for item in value.warm if (message := _served_to_proto(item)) is not None],
    )


def observed(message: pb.ObservedModel) -> ObservedModel:
    return ObservedModel(
        message.model, message.generation, tuple(message.ready_releases), dict(message.failures)
    )


def gateway_to_proto(value: Gateway) -> pb.Gateway:
    return pb.Gateway(
        id=value.id,
        last_heartbeat=to_timestamp(value.last_heartbeat),
        live=value.live,
        observed=[
            pb.ObservedModel(
                model=o.model, generation=o.generation, ready_releases=o.ready_releases, failures=o.failures
            )
            for o in value.observed
        ],
    )


# -------------------------------------------------------------------------------------------- monitor, events


def compare_request(value: Rollout) -> monitor_pb2.CompareVariantsRequest:
    """The question about a rollout's current step."""
    shadow = value.progress.state is RolloutState.SHADOW
    return monitor_pb2.CompareVariantsRequest(
        rollout=value.name,
        champion_release=ReleaseName.of(value.model, value.champion),
        challenger_release=ReleaseName.of(value.model, value.challenger),
        mode=monitor_pb2.COMPARISON_MODE_SHADOW if shadow else monitor_pb2.COMPARISON_MODE_CANARY,
        start_time=to_timestamp(value.step_started_at),
        alpha=value.policy.level,
    )


def comparison(message: monitor_pb2.CompareVariantsResponse) -> Comparison:
    return Comparison(
        champion=_variant(message.champion),
        challenger=_variant(message.challenger),
        first_event=from_timestamp(message.first_event) if message.HasField("first_event") else None,
        last_event=from_timestamp(message.last_event) if message.HasField("last_event") else None,
        labelled=message.labelled,
        log_loss_delta=message.log_loss_delta,
        log_loss_delta_upper=message.log_loss_delta_upper,
        log_loss_delta_lower=message.log_loss_delta_lower,
        score_shift=message.score_shift,
    )


def _variant(message: monitor_pb2.VariantStatistics) -> Variant:
    return Variant(
        message.predictions,
        message.labelled,
        message.error_rate,
        message.latency_p99_ms,
        message.score_mean,
        message.score_stddev,
        message.log_loss if message.HasField("log_loss") else None,
    )


def to_event(event: StageChanged | RolloutChanged, at: datetime) -> tuple[str, Event]:
    """(topic, envelope); the key is the model, so that a model's events keep their order."""
    if isinstance(event, StageChanged):
        moved = lifecycle_pb2.ModelStageChanged(
            model_version=VersionName.of(event.model, event.version),
            from_stage=event.from_stage.value,
            to_stage=event.to_stage.value,
            actor=event.actor,
            reason=event.reason,
            release=ReleaseName.of(event.model, event.release),
        )
        return topics.MODEL_STAGE_CHANGED, build_event(moved, source=SOURCE, key=event.model, event_time=at)
    rollout = event.rollout
    changed = lifecycle_pb2.RolloutChanged(
        rollout=rollout.name,
        state=rollout.progress.state.value,
        challenger_percent=rollout.progress.challenger_percent,
        reason=event.reason,
        champion_release=ReleaseName.of(rollout.model, rollout.champion),
        challenger_release=ReleaseName.of(rollout.model, rollout.challenger),
    )
    return topics.ROLLOUT_CHANGED, build_event(changed, source=SOURCE, key=rollout.model, event_time=at)
