"""The tasks of a join in partitions (see spec.py): each reads outputs of earlier tasks and writes its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from flywheel_common.ray.errors import EngineUnavailable
from flywheel_feature.offline import spines
from flywheel_feature.offline.assembly import assemble
from flywheel_feature.offline.joins.feature_join import Found, JoinPlan, with_computed
from flywheel_feature.offline.model import EVENT_TIMESTAMP, FileSpine
from flywheel_feature.offline.partitioned.spec import (
    BUCKET,
    ROW,
    ROWS_OF,
    SPEC,
    TIME,
    Kind,
    PartitionSpec,
    Task,
)
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.tables.content_hash import block_digests, named_types
from flywheel_feature.tables.empty_archive import EmptyArchive
from flywheel_feature.tables.file_columns import read_columns
from flywheel_feature.tables.ports import Between, Piece, Tables
from flywheel_feature.tables.sources import SourceReader, events_in_order

QUANTILES = 256
ROWS_PER_GROUP = 16_384
LATE = "late/"


@dataclass(slots=True)
class PartitionTasks:
    """Runs tasks of one spec. Blocks; has the rows of one task in memory at a time."""

    spec: PartitionSpec
    tables: Tables
    reader: SourceReader
    workspace: Workspace
    plan: JoinPlan = field(init=False)
    _ordered: list[dict[str, Any]] = field(default_factory=list)
    """Notes of the tasks that ordered the spine, read by the first PART task."""

    def __post_init__(self) -> None:
        self.plan = self.spec.plan()

    def run(self, task: Task) -> None:
        steps: dict[Kind, Callable[[Task], None]] = {
            Kind.CHUNK: self._chunk,
            Kind.RANGE: self._range,
            Kind.KEYS: self._keys,
            Kind.ROWS: self._rows,
            Kind.JOIN: self._join,
            Kind.PART: self._part,
        }
        steps[task.kind](task)

    def _chunk(self, task: Task) -> None:
        frame = pl.concat([self._spine_rows(piece) for piece in self.spec.spine[task.index] or (None,)])
        kept = spines.labelled(frame)
        unlabelled = frame.height - kept.height
        if self.spec.keeps_order:
            self._write_rows(task, kept, unlabelled=unlabelled)
            return
        kept = kept.sort(EVENT_TIMESTAMP, maintain_order=True)
        times = kept.select(pl.col(EVENT_TIMESTAMP).dt.epoch("us")).to_series().to_numpy()
        ranks = np.linspace(0, max(times.size - 1, 0), min(QUANTILES, times.size)).astype(np.int64)
        self._write_rows(task, kept, unlabelled=unlabelled, times=[int(t) for t in times[ranks]])

    def _write_rows(self, task: Task, frame: pl.DataFrame, **values: object) -> None:
        """Write rows of the spine, and a note with their number and their first and last time."""
        self.workspace.write(task.rows_file, frame, _groups(frame.height))
        low, high = frame.select(
            pl.col(EVENT_TIMESTAMP).dt.epoch("us").min().alias("low"),
            pl.col(EVENT_TIMESTAMP).dt.epoch("us").max().alias("high"),
        ).row(0)
        self._note(task, rows=frame.height, low=low, high=high, **values)

    def _spine_rows(self, piece: Piece | None) -> pl.DataFrame:
        spine = self.spec.request.spine
        if isinstance(spine, FileSpine):
            assert piece is not None
            required = spines.required_columns(self.plan, spine)
            columns = spines.file_columns(self.plan, spine)
            rows = read_columns(self.tables, piece, columns, required=required)
            return spines.from_file(self.plan, spine, rows)
        source = self.spec.catalog.source(spine.source)
        high = spine.known_before + 1 if spine.known_before else None
        columns = spines.source_columns(self.plan, spine, source)
        keys = [k.name for k in self.plan.feature_set.join_keys]
        rows = self.reader.read_pieces(source, columns, [piece] if piece else [], high=high, keys=keys)
        return spines.from_source(self.plan, spine, source, rows)

    def _range(self, task: Task) -> None:
        where = Between(EVENT_TIMESTAMP, task.low, task.high)
        columns = spines.spine_columns(self.plan, self.spec.request.spine)
        self._write_rows(task, spines.in_order(self.workspace.read(ROWS_OF[Kind.CHUNK], columns, where)))

    def _keys(self, task: Task) -> None:
        stored = self.plan.stored[task.view]
        rows = Task(self.spec.ordered, task.index).rows_file
        frame = self.workspace.read(rows, list(dict.fromkeys([*stored.keys, EVENT_TIMESTAMP])))
        frame = frame.select(*stored.keys, pl.col(EVENT_TIMESTAMP).alias(TIME)).with_row_index(
            ROW, task.offset
        )
        self._spread(task, frame.cast({ROW: pl.Int64}))

    def _rows(self, task: Task) -> None:
        stored = self.plan.stored[task.view]
        pieces = self.spec.histories[task.view].pieces[task.index]
        # Piece by piece, so that rows that the view does not need are dropped before the next piece is read.
        parts = [self.reader.read_pieces(stored.source, stored.fields, [], task.low, task.high)]
        late: dict[str, int] = {}
        for piece in pieces:
            rows = self.reader.read_pieces(
                stored.source, stored.fields, [piece], task.low, task.high, keys=stored.keys
            )
            parts.append(stored.kept(rows, late).filter(pl.col(k).is_not_null() for k in stored.keys))
        if late:
            self.workspace.write_json(f"{LATE}{task.view:03d}-{task.index:06d}.json", late)
        self._spread(task, pl.concat(parts))

    def _spread(self, task: Task, frame: pl.DataFrame) -> None:
        """Write rows by bucket, in their order; each bucket is a row group, found by its statistics."""
        stored = self.plan.stored[task.view]
        buckets = self.spec.histories[task.view].buckets
        frame = frame.with_columns(
            (pl.struct(stored.keys).hash(0) % buckets).cast(pl.Int32).alias(BUCKET)
        ).sort(BUCKET, maintain_order=True)
        self.workspace.write(task.output, frame, frame.get_column(BUCKET).rle().struct.field("len").to_list())

    def _join(self, task: Task) -> None:
        stored = self.plan.stored[task.view]
        bucket = Between(BUCKET, task.index, task.index + 1)
        keys = list(dict.fromkeys([*stored.keys, TIME, ROW]))
        spine = self.workspace.read(Task(Kind.KEYS, 0, task.view).folder, keys, bucket)
        fields = self.reader.read_pieces(stored.source, stored.fields, []).columns
        rows = self.workspace.read(Task(Kind.ROWS, 0, task.view).folder, fields, bucket)
        if stored.source.is_stream:
            rows = events_in_order(rows)
        answer = stored.join(spine, TIME, self.spec.request.mode, rows).select(stored.wanted)
        answer = answer.with_columns(spine.get_column(ROW)).sort(ROW)
        self.workspace.write(task.output, answer, _groups(answer.height))

    def _part(self, task: Task) -> None:
        assert task.low is not None
        assert task.high is not None
        spine = self._spine_part(task.low, task.high)
        found: Found = {}
        for number, stored in enumerate(self.plan.stored):
            joined = self.workspace.read(
                Task(Kind.JOIN, 0, number).folder, [ROW, *stored.wanted], Between(ROW, task.low, task.high)
            ).sort(ROW)
            if joined.height != spine.height:
                raise RuntimeError(f"{task} found {joined.height} rows of {stored.view.name}")
            found.update({(stored.view.ref, name): joined.get_column(name) for name in stored.wanted})
        features = with_computed(self.plan, found, spine)
        frame = assemble(self.plan, self.spec.request, spine, features)
        self.tables.write(f"{self.spec.uri}part-{task.index:05d}.parquet", frame)
        self._note(task, rows=frame.height, columns=named_types(frame), blocks=block_digests(frame))

    def _spine_part(self, low: int, high: int) -> pl.DataFrame:
        """The rows low … high - 1 of the ordered spine."""
        columns = spines.spine_columns(self.plan, self.spec.request.spine)
        kind = self.spec.ordered
        parts, start = [], 0
        if not self._ordered:
            self._ordered = self.notes(kind)
        for note in self._ordered:
            end = start + note["rows"]
            if start < high and low < end:
                part = self.workspace.read(Task(kind, note["index"]).rows_file, columns)
                parts.append(part.slice(max(low - start, 0), min(high, end) - max(low, start)))
            start = end
        if not parts:
            parts = [self.workspace.read(Task(kind, 0).rows_file, columns).head(0)]
        return pl.concat(parts)

    def notes(self, kind: Kind) -> list[dict[str, Any]]:
        """The notes of the tasks of a kind, by index."""
        prefix = Task(kind, 0).output.rpartition("000000")[0]
        return [self.workspace.read_json(key) for key in sorted(self.workspace.keys(prefix))]

    def late_events(self) -> dict[str, int]:
        """The late events that the ROWS tasks left out, per view version."""
        found: dict[str, int] = {}
        for key in self.workspace.keys(LATE):
            for view, events in self.workspace.read_json(key).items():
                found[view] = found.get(view, 0) + events
        return found

    def _note(self, task: Task, **values: object) -> None:
        self.workspace.write_json(task.output, {"index": task.index, **values})


def open_tasks(workspace: Workspace, tables: Tables) -> PartitionTasks:
    """The tasks of the spec in a workspace. Raises Unavailable ENGINE_UNAVAILABLE when it has no spec."""
    text = workspace.read_bytes(SPEC)
    if text is None:
        raise EngineUnavailable("The working files of the join have no spec (any more): retry.")
    # The spec lists every file, so that the archive is never read.
    reader = SourceReader(tables, EmptyArchive())
    return PartitionTasks(PartitionSpec.from_json(text), tables, reader, workspace)


def _groups(height: int) -> list[int]:
    """The sizes of the row groups of a file with this number of rows."""
    full, rest = divmod(height, ROWS_PER_GROUP)
    return [ROWS_PER_GROUP] * full + ([rest] if rest else [])
