"""Explanations of the drift of a range, computed from the stored counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flywheel_common.arrays import Ints
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.drift.explanation import (
    FeatureExplanation,
    by_impact,
    explain_feature,
    importances,
)
from flywheel_monitor.evaluation.report_lookup import ReportRecords, read_span
from flywheel_monitor.references.errors import NoPredictions, NoReference
from flywheel_monitor.references.lookup import find_version
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.vectors import by_feature

SEGMENTS_READ = 50
"""Each segment is a read of its own; the rows of further ones are shown together."""


@dataclass(frozen=True)
class Explanation:
    """See `ExplainDriftResponse` of the API."""

    model_version: str
    span: Span
    predictions: int
    features: Sequence[FeatureExplanation]
    has_importance: bool


async def find_explanation(
    store: Store[ReportRecords],
    name: str,
    *,
    start_us: int | None,
    end_us: int | None,
    segment: str,
    pane_us: int,
) -> Explanation:
    """Why a range drifted, widened to whole panes, or the newest judged window if both ends are None.
    Raises UnknownModel, NoPredictions, NoReference, InvalidTimeRange."""
    async with store.reading() as records:
        version = await find_version(records, name)
        if not version.reference.columns:
            raise NoReference(f"{version.name} has no reference to compare with: {version.reference.reason}.")
        span = await read_span(records, version, start_us, end_us, pane_us)
        features = version.layout.features
        names = () if segment else await records.segments(version, SEGMENTS_READ)
        # Only the counts of the features are kept of each segment. The segments are read before the whole:
        # what is counted in between belongs to the rest, which is then never below 0.
        parts: dict[str, dict[str, Ints]] = {}
        for one in names:
            found = await records.window(version, span, one)
            if found.predictions:
                parts[one] = {bins.name: found.feature(bins) for bins in features}
        window = await records.window(version, span, segment)
    if window.predictions == 0:
        raise NoPredictions(f"{version.name} served no predictions in this range.")
    columns = by_feature(features)
    importance, has_importance = importances(version.reference.metrics, list(columns))
    explained = []
    for name, of_feature in columns.items():
        found_columns = [
            explain_feature(
                bins,
                window.feature(bins),
                window.feature_blocks(bins),
                {one: counts[bins.name] for one, counts in parts.items()},
                importance[name],
            )
            for bins in of_feature
        ]
        # A vector is explained by its most drifted projection.
        explained.append(replace(max(found_columns, key=lambda one: one.drift), feature=name))
    return Explanation(version.name, span, window.predictions, by_impact(explained), has_importance)
