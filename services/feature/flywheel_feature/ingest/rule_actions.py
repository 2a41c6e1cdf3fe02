"""Actions of validation rules: reject a push, quarantine rows as Parquet, count flagged rows."""

from __future__ import annotations

import asyncio
from functools import partial

import polars as pl
from prometheus_client import Counter

from flywheel_common.arrays import Mask
from flywheel_feature.definitions.model import BatchView, Source, ValidationAction, View
from flywheel_feature.definitions.value_rules import Breach, Report, Ruled, Verdict, validate
from flywheel_feature.encoding.frames import Columns, to_frame
from flywheel_feature.ingest.errors import ValidationFailed
from flywheel_feature.tables.blocking import answered_in_time
from flywheel_feature.tables.content_hash import content_hash
from flywheel_feature.tables.ports import FrameWriter

BROKEN = "__broken"
"""Column of a quarantine file: the rules that the row breaks, as `feature: rule`."""
_ROWS = Counter(
    "flywheel_feature_invalid_rows", "Values that broke a rule on write", ["of", "feature", "action"]
)


class RuleActions:
    """Applies the rules of a view or source to written rows.

    Quarantined rows go to files below `quarantine/{project}/{view}/` (`source.{source}` for pushes to a
    stream source). A file is named by its content, so that a repeated write adds none.
    """

    def __init__(self, files: FrameWriter) -> None:
        self._files = files

    async def pushed_to_view(
        self, view: View, source: Source, columns: Columns, rows: int
    ) -> tuple[Mask | None, Report]:
        """Mask of the rows to write (None: all), and the report.

        Raises ValidationFailed before anything is written.
        """
        assert isinstance(view.kind, BatchView)
        ruled = [(f.field, rule) for f in view.kind.features for rule in f.rules]
        return await self._pushed(view.project, view.id, ruled, source, columns, rows)

    async def pushed_to_source(
        self, source: Source, columns: Columns, rows: int
    ) -> tuple[Mask | None, Report]:
        """As `pushed_to_view`, with the rules on the fields of a stream source."""
        ruled = [(r.field, r.rule) for r in source.rules]
        return await self._pushed(source.project, f"source.{source.id}", ruled, source, columns, rows)

    async def materialized(
        self, view: View, frame: pl.DataFrame, report: Report
    ) -> tuple[pl.DataFrame, Report]:
        """The rows of `frame` (features by name) to write, and `report` with the new breaches."""
        ruled = [(f.name, rule) for f in view.features for rule in f.rules]
        if not ruled or not frame.height:
            return frame, report
        verdict = await asyncio.to_thread(validate, ruled, frame)
        if not verdict.breaches:
            return frame, report
        await self._quarantine(view.project, view.id, frame, verdict)
        _count(view.id, verdict)
        return frame.filter(pl.Series(verdict.kept)), report.plus(verdict)

    async def _pushed(
        self, project: str, of: str, ruled: Ruled, source: Source, columns: Columns, rows: int
    ) -> tuple[Mask | None, Report]:
        if not ruled or not rows:
            return None, Report()
        frame = to_frame(list(source.schema), columns, rows)
        verdict = validate(ruled, frame)
        _count(of, verdict)
        rejected = next((b for b in verdict.breaches if b.action is ValidationAction.REJECT), None)
        if rejected is not None:
            raise _rejected(rejected, verdict)
        if not verdict.breaches:
            return None, Report()
        await self._quarantine(project, of, frame, verdict)
        return verdict.kept, Report().plus(verdict)

    async def _quarantine(self, project: str, of: str, frame: pl.DataFrame, verdict: Verdict) -> None:
        if not verdict.quarantined.any():
            return
        reasons = pl.Series(BROKEN, list(map(list, verdict.reasons)), dtype=pl.List(pl.String))
        quarantined = frame.filter(pl.Series(verdict.quarantined)).with_columns(reasons)
        uri = self._files.bucket_uri(f"quarantine/{project}/{of}/{content_hash(quarantined)[:32]}.parquet")
        await answered_in_time(partial(self._files.write, uri, quarantined))


def report_to_json(report: Report) -> dict[str, object]:
    """A report as the JSON of a ValidationReport message, for a job's result; empty without breaches."""
    if not report.breaches:
        return {}
    return {
        "rejected_count": report.rejected,
        "quarantined_count": report.quarantined,
        "flagged_count": report.flagged,
        "breaches": [
            {
                "feature": b.feature,
                "rule": b.rule,
                "action": f"VALIDATION_ACTION_{b.action.name}",
                "row_count": b.rows,
            }
            for b in report.breaches
        ],
    }


def _count(of: str, verdict: Verdict) -> None:
    for b in verdict.breaches:
        _ROWS.labels(of, b.feature, b.action.name).inc(b.rows)


def _rejected(breach: Breach, verdict: Verdict) -> ValidationFailed:
    more = int(verdict.rejected.sum()) - 1
    others = f" {more} more rows are rejected." if more else ""
    return ValidationFailed(
        f"Row {breach.first}: {breach.feature!r} breaks its rule {breach.rule}; nothing was written.{others}",
        row=breach.first,
        feature=breach.feature,
        rule=breach.rule,
    )
