"""Builds a training set in partitions: chooses an engine, writes the spec and reads the result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Field, Source, TableFormat
from flywheel_feature.jobs.progress import JobProgress, is_cancelled
from flywheel_feature.offline import spines
from flywheel_feature.offline.joins.feature_join import JoinPlan
from flywheel_feature.offline.manifest import BuiltFiles
from flywheel_feature.offline.model import Compute, FileSpine, SourceSpine, TrainingSetRequest
from flywheel_feature.offline.partitioned.errors import NoRay
from flywheel_feature.offline.partitioned.run import error_from_json
from flywheel_feature.offline.partitioned.spec import ERROR, RESULT, SPEC, History, PartitionSpec, Pieces
from flywheel_feature.offline.ports import PartitionEngine, Workspace
from flywheel_feature.offline.unfinished import work_uri
from flywheel_feature.tables.ports import Piece, Tables
from flywheel_feature.tables.sources import SourceReader

log = logging.getLogger(__name__)

MEBIBYTE = 1024 * 1024
JOIN_COPIES = 5
"""Copies of its rows that a join has in memory: read, sorted by time, ordered, known order, gathered."""
TASK_SHARE = 24
"""The rows of a task take 1/24 of the memory limit; their copies and the libraries need the rest."""
LOCAL, RAY = "local", "ray"
VERSIONS = "versions.json"


@dataclass(frozen=True, slots=True)
class JoinLimits:
    """The sizes that decide where a join is computed."""

    memory_bytes: int = 2048 * MEBIBYTE
    """A join that needs more memory is computed in partitions."""
    ray_rows: int = 200_000_000
    """A join that reads more rows runs on Ray, if the service has a Ray cluster."""


@dataclass(frozen=True, slots=True)
class BuiltInputs:
    """The built files, and the versions of the Delta tables that they were built from."""

    files: BuiltFiles
    source_versions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Input:
    pieces: list[Piece]
    width: int
    """Estimated bytes of a row in memory."""

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.pieces)

    @property
    def bytes(self) -> int:
        return self.rows * self.width


class PartitionedBuild:
    """Builds the files of training sets that are too large for memory."""

    def __init__(self, tables: Tables, engines: Sequence[PartitionEngine], limits: JoinLimits) -> None:
        self._tables = tables
        self._engines = {engine.name: engine for engine in engines}
        self._limits = limits

    def check(self, request: TrainingSetRequest) -> None:
        """Raises FailedPrecondition NO_RAY when the request asks for Ray and there is no Ray cluster."""
        if request.compute == Compute.RAY and RAY not in self._engines:
            raise NoRay("This service has no Ray cluster: set ray_address, or leave compute out.")

    async def build(
        self,
        request: TrainingSetRequest,
        plan: JoinPlan,
        catalog: Catalog,
        reader: SourceReader,
        name: str,
        job: JobProgress,
    ) -> BuiltInputs | None:
        """The built files; None when the join fits into memory and should be computed there."""
        self.check(request)
        started = await self._started(name)
        if started is None:
            if not self._engines:
                return None
            job.progress(0, 0, "files", "measuring the inputs")
            spine, histories = await self._inputs(request, plan, catalog, reader)
            engine = self._engine(request, plan, spine, histories)
            if engine is None:
                return None
            spec = self._spec(request, plan, catalog, spine, histories, name)
            workspace = engine.workspace(name)
            await asyncio.to_thread(workspace.write_json, VERSIONS, reader.versions)
            await asyncio.to_thread(workspace.write_bytes, SPEC, spec.to_json())
        else:
            engine, workspace = started
        try:
            await engine.run(name, job)
            built = await asyncio.to_thread(_result, workspace, self.uri(request, name))
        except BaseException as error:
            if is_cancelled(job) or (isinstance(error, FlywheelError) and not error.retryable):
                await asyncio.shield(_discard(engine, name))
            raise
        await _discard(engine, name)
        return built

    async def _started(self, name: str) -> tuple[PartitionEngine, Workspace] | None:
        """The engine and workspace on which an earlier process started this join."""
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
            width = _width((*spines.spine_fields(plan), *plan.extras)) + 16
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
        self,
        request: TrainingSetRequest,
        plan: JoinPlan,
        catalog: Catalog,
        spine: _Input,
        histories: Sequence[_Input],
        name: str,
    ) -> PartitionSpec:
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
            extras=plan.extras,
            keeps_order=isinstance(request.spine, FileSpine),
        )

    def uri(self, request: TrainingSetRequest, name: str) -> str:
        """The folder for the parts of this work; a process that resumes the work uses the same folder."""
        return f"{work_uri(self._tables, request.project, request.training_set_id, name)}parts/"

    def _buckets(self, history: _Input, spine: _Input) -> int:
        most = self._limits.memory_bytes // TASK_SHARE
        return max(-(-(history.bytes + spine.bytes) // most), 1)


def _in_tasks(source: _Input, most_rows: int) -> tuple[Pieces, ...]:
    """Consecutive pieces in tasks of at most `most_rows` rows; at least one task, which may be empty."""
    tasks: list[list[Piece]] = [[]]
    rows = 0
    for piece in source.pieces:
        if tasks[-1] and rows + piece.rows > most_rows:
            tasks.append([])
            rows = 0
        tasks[-1].append(piece)
        rows += piece.rows
    return tuple(tuple(task) for task in tasks)


def _width(fields: object) -> int:
    """Estimated bytes of a row of these fields in memory: 40 for a text, 120 for a list of unknown length."""
    total = 16
    for field in fields:  # type: ignore[attr-defined]
        assert isinstance(field, Field)
        kind = field.data_type
        if kind.is_vector:
            total += 8 * field.vector_size
        else:
            total += 120 if kind.is_list else 40 if kind.name in ("STRING", "BYTES") else 8
    return total


def _result(workspace: Workspace, uri: str) -> BuiltInputs:
    """The result in a workspace, for files at `uri`. Raises the error in it when there is no result."""
    result = workspace.read_bytes(RESULT)
    if result:
        versions = TypeAdapter(dict[str, int]).validate_python(workspace.read_json(VERSIONS) or {})
        # What a process of a cluster has written does not decide where the files are.
        return BuiltInputs(replace(BuiltFiles.from_json(result), uri=uri), versions)
    raise error_from_json(workspace.read_json(ERROR))


async def _discard(engine: PartitionEngine, name: str) -> None:
    """Discard a join; if that fails, its files only use space until they are swept."""
    try:
        await engine.discard(name)
    except FlywheelError as error:
        log.warning("cannot remove the working files of a join: %s", error.message)
