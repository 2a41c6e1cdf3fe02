"""Calls about approvals, audits and webhooks, and the check of a webhook's signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from datetime import UTC

from flywheel.connection import request_id
from flywheel.paging import list_items
from flywheel.stage_calls import StageCalls
from flywheel_protos.registry.v1 import approval_pb2, model_pb2, registry_pb2, webhook_pb2

TOLERANCE_SECONDS = 300.0


class GovernanceCalls(StageCalls):
    """Calls of the registry about who decided what, and who is told."""

    async def approve(self, version: str, reason: str) -> list[approval_pb2.Approval]:
        """Approves a version for production; returns all its approvals."""
        request = approval_pb2.ApproveModelVersionRequest(
            name=await self.resolve_version(version), reason=reason, request_id=request_id()
        )
        return list((await self.registry.ApproveModelVersion(request)).approvals)

    async def audit_faults(self, model: str) -> list[str]:
        """One sentence for each fault of a model's audit; empty when it is intact.

        The registry compares the audit with the model's row and its evidence. The chain is also computed
        here, from the entries that the registry lists, so that its word alone does not count.
        """
        name = self.path("models", model)
        answer = await self.registry.VerifyAudit(approval_pb2.VerifyAuditRequest(parent=name))
        request = registry_pb2.ListAuditEntriesRequest(parent=name)
        listed = (await list_items(self.registry.ListAuditEntries, request, "entries")).items
        entries = [entry for entry in reversed(listed) if entry.sequence <= answer.head_sequence]
        found = list(answer.faults) + chain_faults(name, entries)
        last = (entries[-1].sequence, entries[-1].hash) if entries else (0, "")
        if last != (answer.head_sequence, answer.head_hash):
            found.append(f"{name}: the listed audit ends with entry {last[0]}, not {answer.head_sequence}")
        return list(dict.fromkeys(found))

    async def create_webhook(
        self, webhook: str, url: str, secret: str, *, model: str = "", events: Sequence[str] = ()
    ) -> webhook_pb2.Webhook:
        """Creates a webhook for the changes of one model, or of all models of the project.

        `events` are `STAGE_CHANGED` and `ROLLOUT_CHANGED`, by default both, or `ROLLOUT_ALERT`: only rollouts
        that ended by themselves without a promotion, have stalled for an hour, or have been paused for a day.
        """
        request = webhook_pb2.CreateWebhookRequest(
            parent=self.parent,
            webhook_id=webhook,
            webhook=webhook_pb2.Webhook(
                url=url,
                secret=secret,
                model=self.path("models", model) if model else "",
                events=[f"WEBHOOK_EVENT_{event}" for event in events],
            ),
            request_id=request_id(),
        )
        return (await self.registry.CreateWebhook(request)).webhook

    async def delete_webhook(self, webhook: str) -> None:
        """Deletes a webhook with its deliveries."""
        name = self.path("webhooks", webhook)
        await self.registry.DeleteWebhook(
            webhook_pb2.DeleteWebhookRequest(name=name, request_id=request_id())
        )


def chain_faults(model: str, entries: Sequence[model_pb2.AuditEntry]) -> list[str]:
    """What is wrong with the hash chain of a model's audit entries, oldest first; empty when it is intact.

    hash(n) = SHA-256(hash(n - 1) ‖ JSON of entry n), hash(0) = SHA-256(model name).
    """
    previous = hashlib.sha256(model.encode()).digest()
    for expected, entry in enumerate(entries, 1):
        if entry.sequence != expected:
            return [f"{model}: entry {expected} is missing (found {entry.sequence})"]
        fields = [
            model,
            entry.sequence,
            entry.at.ToDatetime(UTC).isoformat(timespec="microseconds"),
            entry.actor,
            entry.action,
            entry.subject,
            entry.from_state,
            entry.to_state,
            entry.reason,
            entry.evidence,
        ]
        if entry.evidence_hash:
            fields.append(entry.evidence_hash)
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        previous = hashlib.sha256(previous + text.encode()).digest()
        if previous.hex() != entry.hash:
            return [f"{model}: entry {expected} was changed after it was written"]
    return []


def verify_webhook(
    secret: str, header: str, body: bytes, *, tolerance: float = TOLERANCE_SECONDS, at: float | None = None
) -> bool:
    """Whether the header `Flywheel-Signature` fits this body and secret, and is not older than `tolerance`.

    `at` is the Unix time to compare with, by default now.
    """
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    try:
        seconds = int(parts.get("t", ""))
    except ValueError:
        return False
    mac = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    now = time.time() if at is None else at
    return hmac.compare_digest(mac, parts.get("v1", "")) and abs(now - seconds) <= tolerance


def evidence_hash(evidence: model_pb2.Evidence) -> str:
    """The SHA-256 of all fields of evidence, which the audit entries of its decision carry."""
    model, _, number = evidence.name.rpartition("/evidence/")
    at = evidence.created_at.ToDatetime(UTC).isoformat(timespec="microseconds")
    body = [
        model,
        int(number),
        evidence.kind,
        _number(evidence.model_version),
        {name: value + 0.0 for name, value in evidence.values.items()},
        list(evidence.findings),
        evidence.passed,
        at,
        evidence.producer,
        _number(evidence.champion_version),
        _number(evidence.rollout),
        # Only evidence of a rollout belongs to a step.
        evidence.step if evidence.rollout else None,
        evidence.policy,
    ]
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _number(name: str) -> int | None:
    return int(name.rpartition("/")[2]) if name else None
