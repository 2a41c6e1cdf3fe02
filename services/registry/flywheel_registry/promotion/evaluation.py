"""Metrics of versions that a service measured: recording them, and what the gates make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.gates.measured import EVALUATION
from flywheel_registry.models.errors import InvalidMetric
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.rollouts.ports import RolloutRecords


class EvaluationLog:
    """Records evaluations as evidence, in the audit of their model."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def record(
        self,
        records: RolloutRecords,
        name: VersionName,
        values: Mapping[str, float],
        champion: VersionName | None,
        findings: Sequence[str],
        by: str,
    ) -> Evidence:
        """Add evidence of kind EVALUATION. It changes no stage.

        Raises UnknownModelVersion for the version and the champion, and InvalidMetric for a value that is not
        finite, or for none.
        """
        if not values:
            raise InvalidMetric("values is empty: send at least one metric.")
        for metric, value in values.items():
            if not math.isfinite(value):
                raise InvalidMetric(f"values[{metric!r}] is {value}: send a finite value.")
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        if champion is not None:
            if champion.parent != name.parent:
                raise InvalidMetric(f"champion_version is {champion}, which is no version of {name.parent}.")
            await find_version(records, champion)
        journal = Journal(records, name.parent, self._clock.now(), by)
        evidence = await records.add_evidence(
            Evidence(
                model=name.parent,
                kind=EVALUATION,
                version=version.number,
                values=dict(values),
                findings=tuple(findings),
                passed=True,
                created_at=journal.at,
                producer=by,
                champion=champion.number if champion else None,
            )
        )
        await journal.write(
            "EVALUATE",
            version.name,
            from_state=version.stage,
            to_state=version.stage,
            reason=f"{len(values)} metrics measured by {by}",
            evidence=evidence,
        )
        return evidence
