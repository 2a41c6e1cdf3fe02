"""MATERIALIZE jobs: write the latest row per entity of batch views from their Parquet sources online."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.value import micros
from flywheel_feature.definitions.catalog import Catalog, CatalogReader
from flywheel_feature.definitions.errors import NotABatchView
from flywheel_feature.definitions.model import BatchView, Field, View
from flywheel_feature.encoding.frames import from_series
from flywheel_feature.ingest.errors import FilesLeftOut, InvalidRange
from flywheel_feature.ingest.materialize_checkpoint import MaterializeCheckpoint
from flywheel_feature.ingest.materialize_view import ViewInput, ViewRun
from flywheel_feature.ingest.ports import Materialized
from flywheel_feature.ingest.rate_limit import RateLimit
from flywheel_feature.ingest.row_writer import RowStore, RowWriter
from flywheel_feature.ingest.rule_actions import RuleActions, report_to_json
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.jobs.progress import ResumableJob
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
    """Microseconds; None: every file whose contents the view has not read yet (incremental)."""
    end: int | None = None
    rows_per_second: int = 0
    """0: the limit of the service."""
    due_only: bool = False
    """Write only rows that have become valid since they were read (due_rows.py)."""

    def dump(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes) -> MaterializeRequest:
        return cls(**json.loads(data))


class MaterializeJob:
    """`rows_per_second` limits every job, also one whose request has a higher limit or none; 0: no limit."""

    def __init__(
        self,
        *,
        catalogs: CatalogReader,
        files: TableFiles,
        seen: SeenFiles,
        pushed: PushedFiles,
        online: RowStore,
        materialized: Materialized,
        tombstones: TombstoneFilter,
        rule_actions: RuleActions,
        clock: Clock,
        rows_per_second: int = 0,
    ) -> None:
        self._catalogs = catalogs
        self._files = files
        self._seen = seen
        self._pushed = pushed
        self._online = online
        self._materialized = materialized
        self._tombstones = tombstones
        self._rule_actions = rule_actions
        self._clock = clock
        self._limit = rows_per_second

    async def validate(self, request: MaterializeRequest) -> None:
        """Raises UnknownView, NotABatchView, InvalidRange."""
        catalog = await self._catalogs(request.project)
        if request.view and not isinstance(catalog.view(request.view).kind, BatchView):
            raise NotABatchView(
                f"View {request.view!r} is not a batch view: "
                "stream views are kept up to date by `flywheel-feature materialize`."
            )
        if request.start is not None and request.end is not None and request.start >= request.end:
            raise InvalidRange("start_time must be before end_time.")

    async def run(self, job: JobContext) -> Mapping[str, object]:
        """The handler of the job: counts of rows, and the validation report."""
        checkpoint = MaterializeCheckpoint.load(job.checkpoint)
        await self.materialize(MaterializeRequest.load(job.request), checkpoint, job)
        validation = report_to_json(checkpoint.report)
        return {
            "rows": checkpoint.read,
            "written": checkpoint.written,
            "later": checkpoint.later,
            "validation": validation,
        }

    async def materialize(
        self, request: MaterializeRequest, checkpoint: MaterializeCheckpoint, job: ResumableJob
    ) -> None:
        """Materialize every view of the request, from the checkpoint on.

        Raises FilesLeftOut after all other files are online.
        """
        catalog = await self._catalogs(request.project)
        limits = [n for n in (request.rows_per_second, self._limit) if n]
        limit = RateLimit(min(limits, default=0), self._clock)
        for view in catalog.live_views():
            if (
                not isinstance(view.kind, BatchView)
                or request.view not in ("", view.id)
                or view.name in checkpoint.finished
            ):
                continue
            entity, source = catalog.entity(view.entity), catalog.source(view.kind.source)
            run = ViewRun(
                ViewInput(
                    view,
                    entity,
                    source,
                    request.start,
                    request.end,
                    micros(self._clock.now()),
                    request.due_only,
                ),
                self._files,
                self._seen,
                self._pushed,
                self._tombstones,
                self._rule_actions,
                partial(self._write, catalog, view),
            )
            try:
                await run.run(checkpoint, limit, job)
            except FlywheelError as error:
                if error.retryable or request.view:
                    raise
                checkpoint.failures.append(error.message)
            if checkpoint.newest:
                end = request.end if request.end is not None else checkpoint.newest + 1
                await self._materialized.done(request.project, view.id, view.version, end, checkpoint.newest)
            checkpoint.finish_view(view.name)
            await job.save_checkpoint(checkpoint.dump())
        later = f", {checkpoint.later} become valid later" if checkpoint.later else ""
        job.progress(checkpoint.read, checkpoint.read, "rows", f"{checkpoint.written} rows were new{later}")
        if checkpoint.failures:
            messages = "; ".join(checkpoint.failures[:3])[:800]
            raise FilesLeftOut(
                f"{len(checkpoint.failures)} files were left out, all others are online: {messages}"
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
