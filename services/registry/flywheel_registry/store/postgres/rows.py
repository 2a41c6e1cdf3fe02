"""Converts rows of PostgreSQL to values and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from datetime import datetime
from typing import Any

from flywheel_common.signature import InputSpec, OutputKind, OutputSpec, Signature, TensorSpec
from flywheel_common.tensors import Tensor
from flywheel_registry.audit.chain import AuditEntry
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.models.model import Model
from flywheel_registry.models.variant import Variant
from flywheel_registry.models.version import Artifact, GoldenRows, ModelVersion
from flywheel_registry.policies.gate_policy import (
    ExperimentRequirement,
    ExperimentRule,
    GatePolicy,
    MetricThreshold,
)
from flywheel_registry.policies.rollout_policy import RolloutPolicy, StepOverride
from flywheel_registry.releases.release import (
    Calibration,
    FeaturePolicy,
    Isotonic,
    Platt,
    Release,
    Temperature,
)
from flywheel_registry.releases.serving_policy import Placement, RealTimeRule, ServingCost, ServingPolicy
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.verdict import Decision
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.routing import Routing
from flywheel_registry.stages.transitions import Stage

Row = Mapping[str, Any]


def dumps(value: object) -> str:
    """Return compact JSON."""
    return json.dumps(value, separators=(",", ":"))


def policy_to_json(policy: GatePolicy | RolloutPolicy) -> str:
    """Return a policy as JSON, by field name."""
    return dumps(asdict(policy))


def _gate_policy(stored: str) -> GatePolicy:
    values = json.loads(stored)
    return GatePolicy(
        offline=tuple(MetricThreshold(**_known_fields(MetricThreshold, t)) for t in values["offline"]),
        min_evaluation_rows=values["min_evaluation_rows"],
        min_approvals=values.get("min_approvals", 0),
        experiment=_experiment_rule(values.get("experiment")),
    )


def _experiment_rule(stored: dict[str, str] | None) -> ExperimentRule | None:
    if stored is None:
        return None
    return ExperimentRule(ExperimentRequirement(stored["requirement"]), stored["experiment"])


def _rollout_policy(stored: str) -> RolloutPolicy:
    values = _known_fields(RolloutPolicy, json.loads(stored))
    steps = [StepOverride(**_known_fields(StepOverride, step)) for step in values.get("steps", ())]
    percents = tuple(values["canary_percents"])
    return RolloutPolicy(**{**values, "canary_percents": percents, "steps": tuple(steps)})


def _known_fields(
    kind: type[MetricThreshold | RolloutPolicy | StepOverride], stored: dict[str, Any]
) -> dict[str, Any]:
    """Leave out the fields that a newer replica stored and this one does not know."""
    known = {field.name for field in fields(kind)}
    return {key: value for key, value in stored.items() if key in known}


def model(row: Row) -> Model:
    return Model(
        name=row["name"],
        description=row["description"],
        owner=row["owner"],
        tags=json.loads(row["tags"]),
        gate_policy=_gate_policy(row["gate_policy"]),
        rollout_policy=_rollout_policy(row["rollout_policy"]),
        production_release=row["production_release"],
        production_version=row["production_version"],
        created_at=row["created_at"],
        revision=row["revision"],
        variants=_variants(row),
    )


def signature_to_json(value: Signature) -> str:
    """Return a signature as JSON: inputs and tensors by position, the output by field name."""
    return dumps(
        {
            "inputs": [[i.name, i.data_type, i.vocabulary, i.tensor, i.vector_size] for i in value.inputs],
            "tensors": [astuple(tensor) for tensor in value.tensors],
            "output": asdict(value.output),
        }
    )


def _signature(stored: str) -> Signature:
    values = json.loads(stored)
    output = values["output"]
    if output:
        output = {**output, "kind": OutputKind(output["kind"]), "class_names": tuple(output["class_names"])}
    return Signature(
        inputs=tuple(
            InputSpec(name, kind, tuple(words), *rest) for name, kind, words, *rest in values["inputs"]
        ),
        tensors=tuple(TensorSpec(name, kind, tuple(shape)) for name, kind, shape in values["tensors"]),
        output=OutputSpec(**output),
    )


def golden_parts(value: GoldenRows) -> tuple[str, list[bytes]]:
    """Return the headers of the golden tensors as JSON and their bytes, the output last."""
    tensors = (*value.tensors, *([value.output] if value.output is not None else []))
    return dumps([[t.name, t.data_type, t.shape] for t in tensors]), [t.data for t in tensors]


def _golden_rows(row: Row) -> GoldenRows:
    headers = json.loads(row["golden_tensors"])
    tensors = [
        Tensor(name, kind, tuple(shape), data)
        for (name, kind, shape), data in zip(headers, row["golden_data"], strict=True)
    ]
    return GoldenRows(tuple(tensors[:-1]), tensors[-1] if tensors else None, row["golden_tolerance"])


def version(row: Row) -> ModelVersion:
    problems = row["check_problems"]
    return ModelVersion(
        model=row["model"],
        number=row["number"],
        stage=Stage(row["stage"]),
        training_run=row["training_run"],
        framework=row["framework"],
        metrics=json.loads(row["metrics"]),
        feature_set=row["feature_set"],
        training_dataset=row["training_dataset"],
        signature=_signature(row["signature"]),
        artifacts=tuple(Artifact(*parts) for parts in json.loads(row["artifacts"])),
        golden_rows=_golden_rows(row),
        check_problems=None if problems is None else tuple(json.loads(problems)),
        tags=json.loads(row["tags"]),
        description=row["description"],
        parent_version=row["parent_version"],
        cause_alert=row["cause_alert"],
        pipeline_run=row["pipeline_run"],
        registered_at=row["registered_at"],
        registered_by=row["registered_by"],
        promoted_at=row["promoted_at"],
        promoted_by=row["promoted_by"],
    )


def release_body(value: Release) -> str:
    """Return the parts of a release that have no column of their own, as JSON."""
    body: dict[str, Any] = {
        "threshold": value.threshold,
        "default_score": value.default_score,
        "cached_max_age_seconds": value.cached_max_age_seconds,
        "has_fallback": value.has_fallback,
        "segment_keys": list(value.segment_keys),
        "segment_thresholds": dict(value.segment_thresholds),
        "default_values": list(value.default_values),
        "feature_policies": [[p.feature, p.missing, p.stale, p.default] for p in value.feature_policies],
    }
    if value.serving is not None:
        body["serving"] = asdict(value.serving)
    match value.calibration:
        case Platt(slope, intercept):
            body["platt"] = [slope, intercept]
        case Isotonic(x, y):
            body["isotonic"] = [list(x), list(y)]
        case Temperature(temperature):
            body["temperature"] = temperature
    return dumps(body)


def release(row: Row) -> Release:
    body = json.loads(row["body"])
    calibration: Calibration | None = None
    if "platt" in body:
        calibration = Platt(*body["platt"])
    elif "isotonic" in body:
        calibration = Isotonic(*map(tuple, body["isotonic"]))
    elif "temperature" in body:
        calibration = Temperature(body["temperature"])
    return Release(
        model=row["model"],
        number=row["number"],
        version=row["version"],
        feature_set=row["feature_set"],
        calibration=calibration,
        threshold=body["threshold"],
        default_score=body["default_score"],
        cached_max_age_seconds=body["cached_max_age_seconds"],
        has_fallback=body["has_fallback"],
        segment_keys=tuple(body["segment_keys"]),
        # Releases cannot be changed, so those from before these fields do not have them.
        segment_thresholds=body.get("segment_thresholds", {}),
        default_values=tuple(body.get("default_values", ())),
        feature_policies=tuple(FeaturePolicy(*parts) for parts in body.get("feature_policies", ())),
        serving=_serving(body["serving"]) if "serving" in body else None,
        created_at=row["created_at"],
        created_by=row["created_by"],
    )


def _serving(body: dict[str, Any]) -> ServingPolicy:
    placement, rules, cost = body["placement"], body["real_time"], body["cost"]
    return ServingPolicy(
        Placement(**placement) if placement is not None else None,
        tuple(RealTimeRule(**{**rule, "values": tuple(rule["values"])}) for rule in rules)
        if rules is not None
        else None,
        ServingCost(**cost) if cost is not None else None,
    )


def evidence(row: Row) -> Evidence:
    return Evidence(
        model=row["model"],
        number=row["number"],
        kind=row["kind"],
        version=row["version"],
        values={name: float(value) for name, value in json.loads(row["numbers"]).items()},
        findings=tuple(json.loads(row["findings"])),
        passed=row["passed"],
        created_at=row["created_at"],
        producer=row["producer"],
        champion=row["champion"],
        rollout=row["rollout"],
        step=row["step"],
        policy=row["policy"],
    )


def rollout(row: Row) -> Rollout:
    progress = Progress(
        RolloutState(row["state"]),
        row["challenger_percent"],
        row["step"],
        RolloutState(row["resume_to"]) if row["resume_to"] else None,
    )
    return Rollout(
        model=row["model"],
        number=row["number"],
        champion=row["champion"],
        challenger=row["challenger"],
        challenger_version=row["challenger_version"],
        progress=progress,
        policy=_rollout_policy(row["policy"]),
        generation=row["generation"],
        step_started_at=row["step_started_at"],
        step_entered_at=row["step_entered_at"],
        step_ran_seconds=row["step_ran_seconds"],
        alerted_at=row["alerted_at"],
        evidence_count=row["evidence_count"],
        evidence_grew_at=row["evidence_grew_at"],
        last_decision=Decision(row["last_decision"]) if row["last_decision"] else None,
        reason=row["reason"],
        history=tuple(
            RolloutStep(state, percent, datetime.fromisoformat(at), reason, number)
            for state, percent, at, reason, number in json.loads(row["history"])
        ),
        created_at=row["created_at"],
        created_by=row["created_by"],
        ended_at=row["ended_at"],
    )


def audit_entry(row: Row) -> AuditEntry:
    return AuditEntry(**{field: row[field] for field in AuditEntry.__dataclass_fields__})


def routing(row: Row) -> Routing:
    values = {field: row[field] for field in Routing.__dataclass_fields__}
    return Routing(**{**values, "variants": _variants(row)})


def _variants(row: Row) -> tuple[Variant, ...]:
    return tuple(Variant(*parts) for parts in json.loads(row["variants"]))


def span(row: Row) -> ServingSpan:
    return ServingSpan(**{field: row[field] for field in ServingSpan.__dataclass_fields__})


def observed_to_json(models: Sequence[ObservedModel]) -> str:
    return dumps([[m.model, m.generation, list(m.ready_releases), dict(m.failures)] for m in models])


def gateway(row: Row) -> Gateway:
    observed = tuple(
        ObservedModel(name, generation, tuple(ready), failures)
        for name, generation, ready, failures in json.loads(row["observed"])
    )
    return Gateway(row["id"], row["last_heartbeat"], row["live"], observed, row["project"])
