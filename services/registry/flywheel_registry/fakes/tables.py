"""The rows of the registry in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime

from flywheel_registry.audit.chain import AuditEntry, AuditHead
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.approval import Approval
from flywheel_registry.models.model import Model
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.routing import Routing
from flywheel_registry.webhooks.webhook import Delivery, Webhook

Numbered = tuple[str, int]
"""(model, number)."""


@dataclass
class MemoryTables:
    """All rows. The values are immutable, so copying the dictionaries copies everything."""

    models: dict[str, Model] = field(default_factory=dict)
    last_numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    versions: dict[Numbered, ModelVersion] = field(default_factory=dict)
    releases: dict[Numbered, Release] = field(default_factory=dict)
    evidence: dict[Numbered, Evidence] = field(default_factory=dict)
    audit: dict[Numbered, AuditEntry] = field(default_factory=dict)
    rollouts: dict[Numbered, Rollout] = field(default_factory=dict)
    routing: dict[str, Routing] = field(default_factory=dict)
    spans: dict[Numbered, ServingSpan] = field(default_factory=dict)
    events: dict[int, tuple[StageChanged | RolloutChanged, datetime]] = field(default_factory=dict)
    heads: dict[int, AuditHead] = field(default_factory=dict)
    """Number of an event → the head of its model's audit when it was sent."""
    deleted: dict[tuple[str, str, int], datetime] = field(default_factory=dict)
    """(`model`, `version` or `release`, model, number) → time of the deletion; a model has number 0."""
    aliases: dict[tuple[str, str], Alias] = field(default_factory=dict)
    approvals: dict[tuple[str, int, str], Approval] = field(default_factory=dict)
    """(model, version, approver) → approval."""
    webhooks: dict[str, Webhook] = field(default_factory=dict)
    deliveries: dict[Numbered, Delivery] = field(default_factory=dict)
    """(webhook, number) → delivery."""
    purged: dict[Numbered, bool] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 of a content → digests of its blocks."""
    answers: dict[tuple[str, str, str], tuple[bytes, bytes]] = field(default_factory=dict)
    """(caller, method, request id) → (body, answer)."""

    def copy(self) -> MemoryTables:
        return MemoryTables(*(dict(getattr(self, f.name)) for f in fields(self)))
