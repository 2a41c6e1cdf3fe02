"""Evidence and audit entries → protobuf."""

from __future__ import annotations

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.api.convert import to_timestamp
from flywheel_registry.audit.chain import AuditEntry
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.models.names import VersionName
from flywheel_registry.rollouts.names import RolloutName


def evidence_to_proto(value: Evidence) -> pb.Evidence:
    return pb.Evidence(
        name=value.name,
        kind=value.kind,
        model_version=VersionName.of(value.model, value.version),
        values=value.values,
        findings=value.findings,
        passed=value.passed,
        created_at=to_timestamp(value.created_at),
        producer=value.producer,
        champion_version=VersionName.of(value.model, value.champion),
        rollout=RolloutName.of(value.model, value.rollout),
        step=value.step or 0,
        policy=value.policy,
        hash=value.hash,
    )


def audit_to_proto(entry: AuditEntry) -> pb.AuditEntry:
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
        evidence_hash=entry.evidence_hash,
        hash=entry.hash,
    )
