"""The JSON body of a delivery."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from flywheel_registry.audit.chain import AuditHead
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.webhooks.webhook import ROLLOUT_ALERT, ROLLOUT_CHANGED, STAGE_CHANGED


def payload(
    event: StageChanged | RolloutChanged, at: datetime, head: AuditHead
) -> tuple[tuple[str, ...], str]:
    """Return (kinds, body) of an event: webhooks that want one of the kinds are told."""
    body = {
        "model": event.model,
        "at": at.astimezone(UTC).isoformat(),
        "reason": event.reason,
        "audit_sequence": head.sequence,
        "audit_hash": head.hash,
    }
    if isinstance(event, StageChanged):
        kinds: tuple[str, ...] = (STAGE_CHANGED,)
        body |= {
            "model_version": f"{event.model}/versions/{event.version}",
            "from_stage": event.from_stage.value,
            "to_stage": event.to_stage.value,
            "actor": event.actor,
            "release": "" if event.release is None else f"{event.model}/releases/{event.release}",
        }
    else:
        kinds = (ROLLOUT_CHANGED, ROLLOUT_ALERT) if event.alert else (ROLLOUT_CHANGED,)
        body |= {
            "rollout": f"{event.model}/rollouts/{event.rollout}",
            "state": event.state,
            "challenger_percent": event.challenger_percent,
            "challenger_release": f"{event.model}/releases/{event.challenger}",
            "alert": event.alert,
        }
    return kinds, json.dumps({"event": kinds[0], **body}, ensure_ascii=False, separators=(",", ":"))
