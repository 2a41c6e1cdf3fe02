"""MATERIALIZE jobs: the latest row per entity of a batch view, from its Parquet source to the online store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import polars as pl

from flywheel_common.errors import InvalidArgument
from flywheel_feature.catalog import Catalog
from flywheel_feature.definitions import BatchView, Entity, Field, Source, View
from flywheel_feature.frames import from_series
from flywheel_feature.jobs import JobContext
from flywheel_feature.pushing import Rows, RowWriter
from flywheel_feature.validating import Validating, report_to_json
from flywheel_feature.validation import Report

KIND = "MATERIALIZE"
CHUNK_ROWS = 2_000
EVENT_TIME, CREATED_TIME = "__event_time", "__created_time"


@dataclass(frozen=True, slots=True)
class MaterializeRequest:
    project: str
    view: str
    """View id; empty: every batch view."""
    start: int | None = None
    """Microseconds; None: from where the last run ended."""
    end: int | None = None

    def dump(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def load(cls, data: bytes) -> MaterializeRequest:
        return cls(**json.loads(data))


class BatchRows(Protocol):
    async def read_batch_rows(
        self, view: View, entity: Entity, source: Source, start: int | None, end: int | None
    ) -> pl.DataFrame:
        """Join keys, features by name, EVENT_TIME and CREATED_TIME of rows with start <= event time < end."""
        ...


class Progress(Protocol):
    async def end_time(self, project: str, view: str, version: int) -> int | None: ...

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None: ...


class Materializing:
    def __init__(
        self,
        catalogs: Callable[[str], Awaitable[Catalog]],
        reader: BatchRows,
        online: Rows,
        progress: Progress,
        validating: Validating,
    ) -> None:
        self._catalogs = catalogs
        self._reader = reader
        self._online = online
        self._progress = progress
        self._validating = validating

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
        """The job's handler. Rows that are there already are left alone, so it may start again at any view."""
        request = MaterializeRequest.load(job.request)
        catalog = await self._catalogs(request.project)
        views = [
            v for v in catalog.live_views() if isinstance(v.kind, BatchView) and request.view in ("", v.id)
        ]
        finished: list[str] = json.loads(job.checkpoint) if job.checkpoint else []
        written = read = 0
        report = Report()
        for view in views:
            if view.name in finished:
                continue
            job.progress(read, read, "rows", f"reading {view.id}")
            frame, newest, report = await self._latest(catalog, view, request, report)
            for at in range(0, frame.height, CHUNK_ROWS):
                written += await self._write(catalog, view, frame[at : at + CHUNK_ROWS])
                job.progress(
                    read + min(at + CHUNK_ROWS, frame.height),
                    read + frame.height,
                    "rows",
                    f"writing {view.id}",
                )
            read += frame.height
            if newest is not None:
                end = request.end if request.end is not None else newest + 1
                await self._progress.done(request.project, view.id, view.version, end, newest)
            finished.append(view.name)
            await job.save_checkpoint(json.dumps(finished).encode())
        job.progress(read, read, "rows", f"{written} of {read} rows were new")
        return {"rows": read, "written": written, "validation": report_to_json(report)}

    async def _latest(
        self, catalog: Catalog, view: View, request: MaterializeRequest, report: Report
    ) -> tuple[pl.DataFrame, int | None, Report]:
        assert isinstance(view.kind, BatchView)
        start = request.start
        if start is None:
            start = await self._progress.end_time(request.project, view.id, view.version)
        entity = catalog.entity(view.entity)
        frame = await self._reader.read_batch_rows(
            view, entity, catalog.source(view.kind.source), start, request.end
        )
        newest = frame.get_column(EVENT_TIME).dt.epoch("us").max() if frame.height else None
        assert newest is None or isinstance(newest, int)
        # Before the latest row is chosen: behind one that is left out the one before it counts.
        frame, report = await self._validating.materialized(view, frame, report)
        keys = [k.name for k in entity.join_keys]
        latest = await asyncio.to_thread(
            lambda: frame.sort(EVENT_TIME, CREATED_TIME, maintain_order=True).unique(
                subset=keys, keep="last", maintain_order=True
            )
        )
        return latest, newest, report

    async def _write(self, catalog: Catalog, view: View, frame: pl.DataFrame) -> int:
        keys: tuple[Field, ...] = catalog.entity(view.entity).join_keys
        event = frame.get_column(EVENT_TIME).dt.epoch("us").to_numpy()
        created = frame.get_column(CREATED_TIME).dt.epoch("us").fill_null(0).to_numpy()
        return await RowWriter(catalog, view).write(
            {k.name: from_series(frame.get_column(k.name), k.data_type) for k in keys},
            {f.name: from_series(frame.get_column(f.name), f.data_type) for f in view.features},
            event,
            created,
            self._online,
        )
