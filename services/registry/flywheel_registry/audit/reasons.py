"""Which changes need a reason for the audit."""

from __future__ import annotations

from flywheel_registry.audit.errors import ReasonRequired


def require_reason(reason: str, action: str) -> str:
    """Return `reason`. Raises ReasonRequired when it is blank; `action` names the change in the message."""
    if not reason.strip():
        raise ReasonRequired(f"{action} needs a reason for the audit: set `reason`.", field="reason")
    return reason
