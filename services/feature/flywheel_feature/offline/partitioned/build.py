"""Building a training set in partitions: whether, where, out of which files, and what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from flywheel_common.errors import FailedPrecondition, FlywheelError
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Field, Source, TableFormat
from flywheel_feature.jobs.progress import JobProgress, is_cancelled
from flywheel_feature.offline import spines
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.manifest import BuiltFiles
from flywheel_feature.offline.model import Compute, FileSpine, SourceSpine, TrainingSetRequest
from flywheel_feature.offline.partitioned.run import restored
from flywheel_feature.offline.partitioned.spec import ERROR, RESULT, SPEC, History, PartitionSpec, Pieces
from flywheel_feature.offline.ports import PartitionEngine, Workspace
from flywheel_feature.offline.unfinished import work_uri
from flywheel_feature.tables.ports import Piece, Tables
from flywheel_feature.tables.sources import SourceReader

log = logging.getLogger(__name__)

MEBIBYTE = 1024 * 1024
JOIN_COPIES = 5
"""How often a join holds the rows that it joins: read, sorted by time, ordered, known order, gathered."""
TASK_SHARE = 24
"""A task's rows take this part of the limit; with the copies made of them, and the libraries, it stays below it."""
LOCAL, RAY = "local", "ray"
VERSIONS = "versions.json"


@dataclass(frozen=True, slots=True)
class JoinLimits:
    memory_bytes: int = 2048 * MEBIBYTE
    """What a join may take; one that would take more is computed in partitions."""
    ray_rows: int = 200_000_000
    """Joins that read more rows go to Ray, where there is one."""


@dataclass(frozen=True, slots=True)
class BuiltInputs:
    files: BuiltFiles
    source_versions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Input:
    pieces: list[Piece]
    width: int
    """Bytes of a row in memory, about."""

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.pieces)

    @property
    def bytes(self) -> int:
        return self.rows * self.width


class PartitionedBuild:
    def __init__(self, tables: Tables, engines: Sequence[PartitionEngine], limits: JoinLimits) -> None:
        self._tables = tables
        self._engines = {engine.name: engine for engine in engines}
        self._limits = limits

    def check(self, request: TrainingSetRequest) -> None:
        """Raises FailedPrecondition NO_RAY when the request asks for what is not there."""
        if request.compute == Compute.RAY and RAY not in self._engines:
            raise FailedPrecondition(
                "This service has no Ray cluster: set ray_address, or leave compute out.", reason="NO_RAY"
            )

    async def build(
        self, request: TrainingSetRequest, plan: JoinPlan, catalog: Catalog, reader: SourceReader, name: str, job: JobProgress
    ) -> BuiltInputs | None:  # fmt: skip
        """The built files; None when everything fits in memory and is better computed there."""
        self.check(request)
        begun = await self._begun(name)
        if begun is None:
            if not self._engines:
                return None
            job.progress(0, 0, "files", "looking at the inputs")
            spine, histories = await self._inputs(request, plan, catalog, reader)
            engine = self._engine(request, plan, spine, histories)
            if engine is None:
                return None
            spec = self._spec(request, plan, catalog, spine, histories, name)
            workspace = engine.workspace(name)
            await asyncio.to_thread(workspace.write_json, VERSIONS, reader.versions)
            await asyncio.to_thread(workspace.write_bytes, SPEC, spec.to_json())
        else:
            engine, workspace = begun
        try:
            await engine.run(name, job)
            built = await asyncio.to_thread(_answer, workspace)
        except BaseException as error:
            if is_cancelled(job) or (isinstance(error, FlywheelError) and not error.retryable):
                await asyncio.shield(_discard(engine, name))
            raise
        await _discard(engine, name)
        return built

    async def _begun(self, name: str) -> tuple[PartitionEngine, Workspace] | None:
        """Where an earlier process began this work."""
        for engine in self._engines.values():
            workspace = engine.workspace(name)
            if await asyncio.to_thread(workspace.read_bytes, SPEC) is not None:
                return engine, workspace
        return None

    async def _inputs(
        self, request: TrainingSetRequest, plan: JoinPlan, catalog: Catalog, reader: SourceReader
    ) -> tuple[_Input, list[_Input]]:
        spine = request.spine
        high = None
        if isinstance(spine, SourceSpine):
            source = catalog.source(spine.source)
            names = spines.source_columns(plan, spine, source)
            width = _width(f for f in source.schema if f.name in names)
            high = spine.known_before + 1 if spine.known_before else None
            rows = await reader.pieces(source, names, self._task_rows(width), high=high)
        else:
            width = _width(spines.spine_fields(plan)) + 16
            rows = await asyncio.to_thread(self._file_pieces, spine, self._task_rows(width))
        histories = []
        for stored in plan.stored:
            wide = _width(f for f in stored.source.schema if f.name in stored.fields)
            pieces = await reader.pieces(
                stored.source, stored.fields, self._task_rows(wide), pushed_to=stored.pushed_to
            )
            histories.append(_Input(pieces, wide))
        return _Input(rows, width), histories

    def _file_pieces(self, spine: FileSpine, most_rows: int) -> list[Piece]:
        files = self._tables.snapshot(spine.uri, TableFormat.PARQUET).files
        return self._tables.pieces(files, most_rows) or list(files[:1])

    def _task_rows(self, width: int) -> int:
        return max(self._limits.memory_bytes // TASK_SHARE // width, 1)

    def _engine(
        self, request: TrainingSetRequest, plan: JoinPlan, spine: _Input, histories: Sequence[_Input]
    ) -> PartitionEngine | None:
        rows = spine.rows + sum(h.rows for h in histories)
        if request.compute == Compute.RAY:
            return self._engines[RAY]
        if request.compute == Compute.BY_SIZE and rows > self._limits.ray_rows and RAY in self._engines:
            return self._engines[RAY]
        features = spine.rows * _width(plan.feature_set.schema)
        needed = spine.bytes * 3 + features * 3 + max((h.bytes for h in histories), default=0) * JOIN_COPIES
        return self._engines.get(LOCAL) if needed > self._limits.memory_bytes else None

    def _spec(
        self, request: TrainingSetRequest, plan: JoinPlan, catalog: Catalog, spine: _Input, histories: Sequence[_Input], name: str
    ) -> PartitionSpec:  # fmt: skip
        views = [s.view for s in plan.stored] + [c.view for c in plan.computed]
        sources: dict[str, Source] = {s.source.id: s.source for s in plan.stored}
        for computed in plan.computed:
            views += [catalog.view(ref.id, ref.version) for ref in computed.view.inputs]
            sources |= {i: catalog.source(i) for i in getattr(computed.view.kind, "request_sources", ())}
        if isinstance(request.spine, SourceSpine):
            sources[request.spine.source] = catalog.source(request.spine.source)
        for view in views:
            source_id = getattr(view.kind, "source", "")
            if source_id:
                sources[source_id] = catalog.source(source_id)
        return PartitionSpec(
            request=request,
            feature_set=plan.feature_set,
            entities=tuple({v.entity: catalog.entity(v.entity) for v in views if v.entity}.values()),
            sources=tuple(sources.values()),
            views=tuple({v.ref: v for v in views}.values()),
            spine=_in_tasks(spine, self._task_rows(spine.width)),
            histories=tuple(
                History(_in_tasks(h, self._task_rows(h.width)), self._buckets(h, spine)) for h in histories
            ),
            rows_per_range=self._task_rows(spine.width),
            uri=self.uri(request, name),
        )

    def uri(self, request: TrainingSetRequest, name: str) -> str:
        """Where the parts of this work are written; who goes on with the work goes on with them."""
        return f"{work_uri(self._tables, request.project, request.training_set_id, name)}parts/"

    def _buckets(self, history: _Input, spine: _Input) -> int:
        most = self._limits.memory_bytes // TASK_SHARE
        return max(-(-(history.bytes + spine.bytes) // most), 1)


def _in_tasks(given: _Input, most_rows: int) -> tuple[Pieces, ...]:
    """Consecutive pieces together up to so many rows; at least one task, which may be empty."""
    tasks: list[list[Piece]] = [[]]
    rows = 0
    for piece in given.pieces:
        if tasks[-1] and rows + piece.rows > most_rows:
            tasks.append([])
            rows = 0
        tasks[-1].append(piece)
        rows += piece.rows
    return tuple(tuple(task) for task in tasks)


def _width(fields: object) -> int:
    """Bytes of a row of these fields in memory, about: text and lists of unknown length are taken as 40 and 120 bytes."""
    total = 16
    for field in fields:  # type: ignore[attr-defined]
        assert isinstance(field, Field)
        kind = field.data_type
        if kind.is_vector:
            total += 8 * field.vector_size
        else:
            total += 120 if kind.is_list else 40 if kind.name in ("STRING", "BYTES") else 8
    return total


def _answer(workspace: Workspace) -> BuiltInputs:
    result = workspace.read_bytes(RESULT)
    if result:
        versions = TypeAdapter(dict[str, int]).validate_python(workspace.read_json(VERSIONS) or {})
        return BuiltInputs(BuiltFiles.from_json(result), versions)
    raise restored(workspace.read_json(ERROR))


async def _discard(engine: PartitionEngine, name: str) -> None:
    """Files that cannot be deleted now cost room, and no answer."""
    try:
        await engine.discard(name)
    except FlywheelError as error:
        log.warning("working files of a join are left over: %s", error.message)
