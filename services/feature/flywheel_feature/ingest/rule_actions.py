"""Carrying out what the rules say (validation.py): refuse, set aside as Parquet, or count."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

import polars as pl
from prometheus_client import Counter

from flywheel_common.arrays import Mask
from flywheel_common.errors import InvalidArgument
from flywheel_feature.definitions.model import BatchView, Source, ValidationAction, View
from flywheel_feature.definitions.value_rules import Breach, Report, Ruled, Verdict, validate
from flywheel_feature.encoding.frames import Columns, to_frame
from flywheel_feature.tables.blocking import answered_in_time
from flywheel_feature.tables.content_hash import content_hash

BROKEN = "__broken"
"""Column of a quarantine file: the rules that the row breaks, `feature: rule` each."""
_ROWS = Counter(
    "flywheel_feature_invalid_rows", "Values that broke a rule on write", ["of", "feature", "action"]
)


class Files(Protocol):
    """Parquet files; the address of an object of the service's own bucket."""

    def bucket_uri(self, key: str) -> str: ...

    def write(self, uri: str, frame: pl.DataFrame) -> None:
        """Whole or not at all; the same file again replaces it."""
        ...


class RuleActions:
    """Rows set aside lie below `quarantine/{project}/{view}/` (`source.{source}` for pushes to a stream
    source), in files named by their content, so that a repeated write adds none."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def pushed_to_view(
        self, view: View, source: Source, columns: Columns, rows: int
    ) -> tuple[Mask | None, Report]:
        """The rows to write (None: all of them). Raises InvalidArgument VALIDATION_FAILED before anything is
        set aside."""
        assert isinstance(view.kind, BatchView)
        ruled = [(f.field, rule) for f in view.kind.features for rule in f.rules]
        return await self._pushed(view.project, view.id, ruled, source, columns, rows)

    async def pushed_to_source(
        self, source: Source, columns: Columns, rows: int
    ) -> tuple[Mask | None, Report]:
        """As `pushed_to_view`, by the rules of a stream source's fields."""
        ruled = [(r.field, r.rule) for r in source.rules]
        return await self._pushed(source.project, f"source.{source.id}", ruled, source, columns, rows)

    async def materialized(
        self, view: View, frame: pl.DataFrame, report: Report
    ) -> tuple[pl.DataFrame, Report]:
        """The rows of `frame` (features by name) to write, and the report with what the others broke."""
        ruled = [(f.name, rule) for f in view.features for rule in f.rules]
        if not ruled or not frame.height:
            return frame, report
        verdict = await asyncio.to_thread(validate, ruled, frame)
        if not verdict.breaches:
            return frame, report
        await self._set_aside(view.project, view.id, frame, verdict)
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
        refused = next((b for b in verdict.breaches if b.action is ValidationAction.REJECT), None)
        if refused is not None:
            raise _refused(refused, verdict)
        if not verdict.breaches:
            return None, Report()
        await self._set_aside(project, of, frame, verdict)
        return verdict.kept, Report().plus(verdict)

    async def _set_aside(self, project: str, of: str, frame: pl.DataFrame, verdict: Verdict) -> None:
        if not verdict.quarantined.any():
            return
        reasons = pl.Series(BROKEN, list(map(list, verdict.reasons)), dtype=pl.List(pl.String))
        aside = frame.filter(pl.Series(verdict.quarantined)).with_columns(reasons)
        uri = self._files.bucket_uri(f"quarantine/{project}/{of}/{content_hash(aside)[:32]}.parquet")
        await answered_in_time(partial(self._files.write, uri, aside))


def report_to_json(report: Report) -> dict[str, object]:
    """As JSON values in the shape of ValidationReport, for a job's result; empty when no rule was broken."""
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


def _refused(breach: Breach, verdict: Verdict) -> InvalidArgument:
    more = int(verdict.rejected.sum()) - 1
    others = f" {more} more rows are refused." if more else ""
    return InvalidArgument(
        f"Row {breach.first}: {breach.feature!r} breaks its rule {breach.rule}; nothing was written.{others}",
        reason="VALIDATION_FAILED",
        row=breach.first,
        feature=breach.feature,
        rule=breach.rule,
    )
