"""Which metrics the gates read: those that an evaluation measured outrank all others."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.evidence.ports import EvidenceRecords
from flywheel_registry.gates.offline import CHAMPION_PREFIX
from flywheel_registry.models.version import ModelVersion

EVALUATION = "EVALUATION"
"""Kind of the evidence that RecordEvaluation adds."""


async def newest_evaluation(records: EvidenceRecords, version: ModelVersion) -> Evidence | None:
    """The newest evaluation of a version."""
    return await records.newest_evidence_of(version.model, version.number, EVALUATION)


def with_evaluation(
    metrics: Mapping[str, float], evaluation: Evidence | None, champion: int | None
) -> dict[str, float]:
    """The metrics, with those of an evaluation in their place.

    Of the champion on the version's rows, only what belongs to the same rows and to today's champion stays:
    where the evaluation has a metric, the champion's value from elsewhere is dropped, and the evaluation's
    own counts only if it was compared with `champion`.
    """
    if evaluation is None:
        return dict(metrics)
    own = {n: v for n, v in evaluation.values.items() if not n.startswith(CHAMPION_PREFIX)}
    kept = {
        name: value
        for name, value in metrics.items()
        if not (name.startswith(CHAMPION_PREFIX) and name.removeprefix(CHAMPION_PREFIX) in own)
    }
    if evaluation.champion == champion and champion is not None:
        own = dict(evaluation.values)
    return {**kept, **own}
