"""Finds rollouts whose evidence does not grow, as with gateways that send no predictions."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_registry.rollouts.rollout import Rollout

STALL_SECONDS = 3600.0
"""Wall time without new evidence after which a rollout counts as stalled and is reported."""


def with_evidence(rollout: Rollout, count: int, now: datetime) -> Rollout:
    """Return the rollout with `count` predictions in its step; a new count restarts the stall's clock."""
    if count == rollout.evidence_count:
        return rollout
    return replace(rollout, evidence_count=count, evidence_grew_at=now, alerted_at=None)


def is_stalled(rollout: Rollout, now: datetime) -> bool:
    """Return whether the step of an undecided rollout has got no new evidence for `STALL_SECONDS`."""
    since = rollout.evidence_grew_at or rollout.step_entered_at
    return since is not None and (now - since).total_seconds() >= STALL_SECONDS
