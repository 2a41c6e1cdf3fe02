"""The interface of all gates: offline, shadow, online, experiment and approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.evidence.ports import EvidenceRecords
from flywheel_registry.gates.offline import GateResult
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.gate_policy import GatePolicy


class GateRecords(ModelRecords, EvidenceRecords, Protocol):
    """What the gates read: evidence of earlier rollouts, and approvals."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version at a gate, the champion that it would replace, its metrics, and the policy of its model.

    `experiments` are the verdicts on the release that would serve, newest first, None when the monitor does
    not answer. They are read before the transaction, and only when the policy has a rule on them.
    """

    version: ModelVersion
    champion: ModelVersion | None
    metrics: Mapping[str, float]
    policy: GatePolicy
    experiments: tuple[ExperimentVerdict, ...] | None = ()


class Gate(Protocol):
    """One condition for a stage. It reads and changes nothing."""

    async def evaluate(self, records: GateRecords, candidate: Candidate) -> GateResult:
        """Return whether the candidate passes, one finding per rule, and the numbers that were used."""
        ...
