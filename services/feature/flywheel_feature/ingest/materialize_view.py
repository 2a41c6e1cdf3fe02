"""Materializing one batch view: chooses the files to read and writes their rows online, a batch at a time.

An incremental run reads every file whose current contents the view has not read. Late rows are never missed,
however old their event times: they arrive in new files or in rewritten ones, and a rewritten file is read as
a whole. Files are read in the order of offline reads (by path, then the rows pushed to the view), so that of
different rows with equal times the same one is kept. A range run (with a start) reads the rows of its range
in every file, and marks no file as read. Memory is bounded by one row group and one batch.

A row is valid from the later of its event time and its created time. Rows that are valid after the clock of
the run are not written; the file is remembered with the time of the first of them (`SeenFile.due`). From that
time on, an incremental run and a due run (due_rows.py) read the file again, and only these rows.

After every batch the job's checkpoint holds the file and the number of its batches that are online; another
process resumes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from flywheel_common.errors import FlywheelError, NotFound, WrongType
from flywheel_feature.definitions.model import Entity, ParquetSource, Source, View
from flywheel_feature.ingest.materialize_checkpoint import MaterializeCheckpoint
from flywheel_feature.ingest.rate_limit import RateLimit
from flywheel_feature.ingest.rule_actions import RuleActions
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.jobs.progress import ResumableJob
from flywheel_feature.tables.declared import (
    check_columns,
    columns_of,
    declared_rows,
    in_range,
    mismatch,
    times_between,
)
from flywheel_feature.tables.ports import (
    Footer,
    PushedFiles,
    SeenFile,
    SeenFiles,
    TableFile,
    TableFiles,
)
from flywheel_feature.tables.sources import (
    ROW_CREATED_TIME,
    ROW_EVENT_TIME,
    batch_fields,
    batch_rows,
)

BATCH_ROWS = 65_536
Batch = tuple[int, pl.DataFrame]
"""(number of the batch in its file, its rows as stored)."""


@dataclass(frozen=True, slots=True)
class ViewInput:
    """The view of a run, and the range of event times to read."""

    view: View
    entity: Entity
    source: Source
    start: int | None
    """Microseconds; None: incremental."""
    end: int | None
    now: int
    """The clock of the run, microseconds."""
    due_only: bool = False
    """Read only the files with rows that have become valid."""

    @property
    def is_incremental(self) -> bool:
        return self.start is None


@dataclass(frozen=True, slots=True)
class FileToRead:
    """A file, and what a run reads of it."""

    file: TableFile
    stamp: str
    """The stamp to remember when it was read."""
    valid_from: int | None = None
    """Rows that are valid from an earlier time are online; None: read all rows."""
    read_at: int = 0
    """When the rows were read before, microseconds; 0: not yet."""


class ViewRun:
    """Materializes one view. `write` writes rows online and returns how many replaced an older row."""

    def __init__(
        self,
        view_input: ViewInput,
        files: TableFiles,
        seen: SeenFiles,
        pushed: PushedFiles,
        tombstones: TombstoneFilter,
        rule_actions: RuleActions,
        write: Callable[[pl.DataFrame], Awaitable[int]],
    ) -> None:
        self._input = view_input
        self._files = files
        self._seen = seen
        self._pushed = pushed
        self._tombstones = tombstones
        self._rule_actions = rule_actions
        self._write = write
        self._keys = [k.name for k in view_input.entity.join_keys]
        self._version = view_input.view.project, view_input.view.id, view_input.view.version
        self._vanished: Mapping[str, SeenFile] = {}
        """Files that are remembered with rows that have become valid, and that no longer exist."""

    async def run(self, checkpoint: MaterializeCheckpoint, limit: RateLimit, job: ResumableJob) -> None:
        """Read and write every file of the run, from the checkpoint on.

        A file that cannot be read or holds invalid values is left out, with a message in
        `checkpoint.failures`.
        """
        table, pushed = await self._all_files()
        files = await self._files_to_read([*table, *pushed], checkpoint)
        job.progress(checkpoint.read, 0, "rows", f"reading {len(files)} files of {self._input.view.id}")
        footers = await asyncio.to_thread(self._files.footers, [f.file.uri for f in files])
        await asyncio.to_thread(self._check_columns, table, [f.file for f in files], footers)
        total = checkpoint.read + sum(f.rows for f in footers if isinstance(f, Footer))
        for reading, footer in zip(files, footers, strict=True):
            if isinstance(footer, FlywheelError):
                checkpoint.failures.append(_about(reading.file, footer))
                continue
            checkpoint.begin_file(reading.file)
            try:
                await self._file(reading, checkpoint, total, limit, job)
            except FlywheelError as error:
                if error.retryable:
                    raise
                checkpoint.failures.append(_about(reading.file, error))
            await job.save_checkpoint(checkpoint.dump())
        for uri, seen in self._vanished.items():
            await self._seen.mark_seen(*self._version, uri, SeenFile(seen.stamp))

    async def _all_files(self) -> tuple[list[TableFile], list[TableFile]]:
        """(the files of the table, the files of the push log)."""
        view, source = self._input.view, self._input.source.kind
        assert isinstance(source, ParquetSource)
        pushed = await self._pushed.pushed(view.project, view.id)
        try:
            files = await asyncio.to_thread(self._files.files, source.uri, source.format)
        except NotFound:
            if not pushed:
                raise
            files = []
        return files, pushed

    async def _files_to_read(
        self, files: list[TableFile], checkpoint: MaterializeCheckpoint
    ) -> list[FileToRead]:
        """Of an incremental run, files with unread contents or with rows that have become valid; of a range
        run, those from the checkpoint on."""
        if not self._input.is_incremental:
            return _from_checkpoint([FileToRead(f, f.stamp) for f in files], checkpoint)
        seen = await self._seen.seen(*self._version)
        due = {uri: s for uri, s in seen.items() if 0 < s.due <= self._input.now}
        present = {f.uri for f in files}
        self._vanished = {uri: s for uri, s in due.items() if uri not in present}
        # The rows of a vanished file may be in a new one: an erasure and a compaction replace files.
        everything = not self._input.due_only or bool(self._vanished)
        found = []
        for file in files:
            before = seen.get(file.uri, SeenFile(""))
            if everything and (not file.stamp or before.stamp != file.stamp):
                found.append(FileToRead(file, file.stamp))
            elif file.uri in due:
                found.append(FileToRead(file, before.stamp, before.due, before.read_at))
        return found

    def _check_columns(
        self,
        table: Sequence[TableFile],
        files: Sequence[TableFile],
        footers: Sequence[Footer | FlywheelError],
    ) -> None:
        """Check that the table has every field of the view, as offline reads do.

        `footers` are those of `files`. Raises FailedPrecondition SOURCE_MISMATCH.
        """
        read = {file.uri: footer for file, footer in zip(files, footers, strict=True)}
        found = [f for file in table if isinstance(f := read.get(file.uri), Footer)]
        if not found:
            return
        folders = {name for file in table for name, _ in file.partition}
        known = folders.union(*(footer.columns for footer in found))
        source = self._input.source
        names = batch_fields(self._input.view, self._input.entity, source)
        others = [file.uri for file in table if file.uri not in read]
        check_columns(source, names, known, self._files, others)

    async def _file(
        self,
        reading: FileToRead,
        checkpoint: MaterializeCheckpoint,
        total: int,
        limit: RateLimit,
        job: ResumableJob,
    ) -> None:
        """Read and write the batches of a file that are not online yet, then mark the file as read."""
        view, source, file = self._input.view, self._input.source, reading.file

        def report() -> None:
            left = limit.time_left(total - checkpoint.read)
            job.progress(checkpoint.read, total, "rows", f"writing {view.id}{left}")

        names = batch_fields(view, self._input.entity, source)
        where = None
        if not self._input.is_incremental:
            where = times_between(source, file, self._input.start, self._input.end)
        columns = columns_of(source, names, file)
        batches = self._files.batches(file, columns, where, BATCH_ROWS, checkpoint.batches)
        all_in_range = True
        while (found := await asyncio.to_thread(self._next, file, batches)) is not None:
            number, raw = found
            frame, in_time = await asyncio.to_thread(self._prepared, reading, names, raw)
            all_in_range = all_in_range and in_time
            frame = await asyncio.to_thread(self._valid, reading, frame, checkpoint)
            # Rules come before `_latest`: when the latest row is left out, the one before it counts.
            frame, checkpoint.report = await self._rule_actions.materialized(view, frame, checkpoint.report)
            frame = await asyncio.to_thread(self._latest, frame)
            for low in range(0, frame.height, limit.chunk):
                job.check_cancelled()
                chunk = frame[low : low + limit.chunk]
                checkpoint.written += await self._write(chunk)
                await limit.wrote(chunk.height)
                report()
            if frame.height:
                newest = frame.get_column(ROW_EVENT_TIME).dt.epoch("us").max()
                assert isinstance(newest, int)
                checkpoint.newest = max(checkpoint.newest, newest)
            checkpoint.read += raw.height
            checkpoint.batches = number
            await job.save_checkpoint(checkpoint.dump())
            report()
        read_at = (reading.read_at or self._input.now) if checkpoint.due else 0
        seen = SeenFile(reading.stamp, checkpoint.due, read_at)
        if self._input.is_incremental and all_in_range:
            if reading.stamp or checkpoint.due or reading.valid_from:
                await self._seen.mark_seen(*self._version, file.uri, seen)
        elif checkpoint.due and reading.valid_from is None:
            await self._seen.mark_due(*self._version, file.uri, seen)

    def _valid(
        self, reading: FileToRead, frame: pl.DataFrame, checkpoint: MaterializeCheckpoint
    ) -> pl.DataFrame:
        """The rows that are valid now and not online yet; later ones are counted in the checkpoint."""
        valid_from = frame.select(
            pl.max_horizontal(ROW_EVENT_TIME, ROW_CREATED_TIME).dt.epoch("us")
        ).to_series()
        is_later = valid_from > self._input.now
        if is_later.any():
            later = valid_from.filter(is_later)
            checkpoint.add_later(int(later.min()), len(later))  # type: ignore[arg-type]
            frame, valid_from = frame.filter(~is_later), valid_from.filter(~is_later)
        return frame if reading.valid_from is None else frame.filter(valid_from >= reading.valid_from)

    def _next(self, file: TableFile, batches: Iterator[Batch]) -> Batch | None:
        try:
            return next(batches, None)
        except WrongType as error:
            raise mismatch(self._input.source, f"{file.uri}: {error.message}") from error

    def _prepared(
        self, reading: FileToRead, names: Sequence[str], raw: pl.DataFrame
    ) -> tuple[pl.DataFrame, bool]:
        """The rows of a batch to write, checked, and whether all rows lie before the end of the range."""
        view, source, end = self._input.view, self._input.source, self._input.end
        declared = declared_rows(source, names, raw, reading.file, keys=self._keys)
        time = pl.col(source.timestamp_field).dt.epoch("us")
        all_in_range = end is None or declared.filter(time >= end).height == 0
        declared = in_range(declared, source.timestamp_field, self._input.start, end)
        frame = batch_rows(declared, view, self._input.entity, source)
        if not reading.file.pushed:
            known = frame.get_column(ROW_CREATED_TIME).dt.epoch("us").to_numpy()
            if reading.read_at:
                # Without a created time, a row that becomes valid later would count as known later.
                known = np.minimum(known, reading.read_at)
            kept = self._tombstones.batch_rows(source, known, frame)
            frame = frame if kept is None else frame.filter(pl.Series(kept))
        return frame, all_in_range

    def _latest(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The latest row per entity of a batch."""
        return frame.sort(ROW_EVENT_TIME, ROW_CREATED_TIME, maintain_order=True).unique(
            subset=self._keys, keep="last", maintain_order=True
        )


def _about(file: TableFile, error: FlywheelError) -> str:
    return error.message if file.uri in error.message else f"{file.uri}: {error.message}"


def _from_checkpoint(files: list[FileToRead], checkpoint: MaterializeCheckpoint) -> list[FileToRead]:
    """The files from the one of the checkpoint on: a range run has no other record of files that are done."""
    uris = [reading.file.uri for reading in files]
    return files[uris.index(checkpoint.uri) :] if checkpoint.uri in uris else files
