"""Approvals of versions for production."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's approval of a version."""

    model: str
    version: int
    approver: str
    reason: str
    approved_at: datetime
