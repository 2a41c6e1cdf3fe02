"""Evidence: the frozen record of what one decision was based on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers and findings of one decision; `kind` is OFFLINE, LOAD, SHADOW or CANARY.

    `producer` is the service or caller that the numbers come from, `champion` the number of the version that
    was compared with, `rollout` and `step` the rollout and its step, `policy` the rules as JSON.
    """

    model: str
    kind: str
    version: int
    values: Mapping[str, float]
    findings: Sequence[str]
    passed: bool
    number: int = 0
    created_at: datetime | None = None
    producer: str = ""
    champion: int | None = None
    rollout: int | None = None
    step: int | None = None
    policy: str = ""

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/evidence/{self.number}"

    @property
    def hash(self) -> str:
        """Lower-case hex SHA-256 of all fields, which the audit entries of the decision carry."""
        at = self.created_at.astimezone(UTC).isoformat(timespec="microseconds") if self.created_at else ""
        # `+ 0.0` turns -0.0 into 0.0, as the database does.
        body = json.dumps(
            [
                self.model,
                self.number,
                self.kind,
                self.version,
                {name: float(value) + 0.0 for name, value in self.values.items()},
                list(self.findings),
                self.passed,
                at,
                self.producer,
                self.champion,
                self.rollout,
                self.step,
                self.policy,
            ],
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(body.encode()).hexdigest()
