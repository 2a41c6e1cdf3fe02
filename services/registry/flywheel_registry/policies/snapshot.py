"""Policies as text: what a decision was made on, and what a change changed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from flywheel_registry.policies.gate_policy import GatePolicy
from flywheel_registry.policies.rollout_policy import RolloutPolicy


def policy_snapshot(policy: GatePolicy | RolloutPolicy) -> str:
    """Return a policy as canonical JSON: equal policies have equal texts."""
    return json.dumps(asdict(policy), sort_keys=True, separators=(",", ":"))


def policy_changes(before: GatePolicy | RolloutPolicy, after: GatePolicy | RolloutPolicy) -> str:
    """Return the fields that differ as `name: before → after`, joined by `; `; empty when none does."""
    old, new = asdict(before), asdict(after)
    return "; ".join(
        f"{name}: {_text(old[name])} → {_text(value)}" for name, value in new.items() if value != old[name]
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
