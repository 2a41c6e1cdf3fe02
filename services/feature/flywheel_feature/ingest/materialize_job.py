"""MATERIALIZE jobs: the latest row per entity of batch views, from their Parquet sources to the online
store."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import DataLoss, FlywheelError, InvalidArgument
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import BatchView, Field, View
from flywheel_feature.encoding.frames import from_series
from flywheel_feature.ingest.materialize_view import Due, MaterializeCheckpoint, RateLimit, Running, ViewRun
from flywheel_feature.ingest.push import Rows, RowWriter
from flywheel_feature.ingest.rule_actions import RuleActions, report_to_json
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.jobs.runner import JobContext
from flywheel_feature.tables.ports import PushedFiles, SeenFiles, TableFiles
from flywheel_feature.tables.sources import ROW_CREATED_TIME, ROW_EVENT_TIME

KIND = "MATERIALIZE"


@dataclass(frozen=True, slots=True)
class MaterializeRequest:
    project: str
    view: str
    """View id; empty: every batch view."""
    start: int | None = None
    """Microseconds; None: every file that was not materialized as it is now (incremental)."""
    end: int | None = None
    rows_per_second: int = 0
    """0: the service's own limit."""

    def dump(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes) -> MaterializeRequest:
        return cls(**json.loads(data))


class Materialized(Protocol):
    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        """The newest event time online of a view version; never back."""
        ...


class MaterializeJob:
    """`rows_per_second`: the limit of every job that asks for no lower one; 0: none."""

    def __init__(
        self,
        catalogs: Callable[[str], Awaitable[Catalog]],
        files: TableFiles,
        seen: SeenFiles,
        pushed: PushedFiles,
        online: Rows,
        materialized: Materialized,
        erased: TombstoneFilter,
        validating: RuleActions,
        clock: Clock,
        *,
        rows_per_second: int = 0,
    ) -> None:
        self._catalogs = catalogs
        self._files = files
        self._seen = seen
        self._pushed = pushed
        self._online = online
        self._materialized = materialized
        self._erased = erased
        self._validating = validating
        self._clock = clock
        self._limit = rows_per_second

    async def validate(self, request: MaterializeRequest) -> None:
        """Raises NotFound UNKNOWN_VIEW; InvalidArgument NOT_A_BATCH_VIEW, INVALID_RANGE."""
        catalog = await self._catalogs(request.project)
        if request.view and not isinstance(catalog.view(request.view).kind, BatchView):
            raise InvalidArgument(
                f"View {request.view!r} is no batch view: stream views are kept up to date by `flywheel-feature materialize`.",
                reason="NOT_A_BATCH_VIEW",
            )
        if request.start is not None and request.end is not None and request.start >= request.end:
            raise InvalidArgument("start_time must be before end_time.", reason="INVALID_RANGE")

    async def run(self, job: JobContext) -> Mapping[str, object]:
        """The job's handler (see materialize_view)."""
        standing = MaterializeCheckpoint.load(job.checkpoint)
        await self.views(MaterializeRequest.load(job.request), standing, job)
        validation = report_to_json(standing.report)
        return {"rows": standing.read, "written": standing.written, "validation": validation}

    async def views(self, request: MaterializeRequest, standing: MaterializeCheckpoint, job: Running) -> None:
        """Every view asked for, from where `standing` is. Raises DataLoss FILES_LEFT_OUT when all else is
        done."""
        catalog = await self._catalogs(request.project)
        limits = [n for n in (request.rows_per_second, self._limit) if n]
        pace = RateLimit(min(limits, default=0), self._clock)
        for view in catalog.live_views():
            if (
                not isinstance(view.kind, BatchView)
                or request.view not in ("", view.id)
                or view.name in standing.finished
            ):
                continue
            entity, source = catalog.entity(view.entity), catalog.source(view.kind.source)
            due = Due(view, entity, source, request.start, request.end)
            write = partial(self._write, catalog, view)
            run = ViewRun(due, self._files, self._seen, self._pushed, self._erased, self._validating, write)
            try:
                await run.run(standing, pace, job)
            except FlywheelError as error:
                if error.retryable or request.view:
                    raise
                standing.failures.append(error.message)
            if standing.newest:
                end = request.end if request.end is not None else standing.newest + 1
                await self._materialized.done(request.project, view.id, view.version, end, standing.newest)
            standing.finished.append(view.name)
            standing.uri, standing.stamp, standing.batches, standing.newest = "", "", 0, 0
            await job.save_checkpoint(standing.dump())
        job.progress(standing.read, standing.read, "rows", f"{standing.written} rows were new")
        if standing.failures:
            raise DataLoss(
                f"{len(standing.failures)} files were left out, all others are online: {'; '.join(standing.failures[:3])[:800]}",
                reason="FILES_LEFT_OUT",
            )

    async def _write(self, catalog: Catalog, view: View, frame: pl.DataFrame) -> int:
        keys: tuple[Field, ...] = catalog.entity(view.entity).join_keys
        event = frame.get_column(ROW_EVENT_TIME).dt.epoch("us").to_numpy()
        created = frame.get_column(ROW_CREATED_TIME).dt.epoch("us").fill_null(0).to_numpy()
        return await RowWriter(catalog, view).write(
            {k.name: from_series(frame.get_column(k.name), k.data_type) for k in keys},
            {f.name: from_series(frame.get_column(f.name), f.data_type) for f in view.features},
            event,
            created,
            self._online,
        )
