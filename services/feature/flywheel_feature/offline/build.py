"""Builds training sets: reads a spine, joins features to it, writes the files and registers the set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_feature.definitions.catalog import Catalog, CatalogReader
from flywheel_feature.definitions.model import ParquetSource, Source, TableFormat
from flywheel_feature.jobs.progress import ResumableJob, Stages
from flywheel_feature.offline import spines
from flywheel_feature.offline.assembly import assemble, check_extras, check_names
from flywheel_feature.offline.errors import TrainingSetExists
from flywheel_feature.offline.joins.feature_join import FeatureJoiner, JoinPlan, plan_join
from flywheel_feature.offline.manifest import ROWS_PER_FILE, BuiltFiles, of_frame
from flywheel_feature.offline.model import (
    EVENT_TIMESTAMP,
    FileSpine,
    SourceSpine,
    TrainingSet,
    TrainingSetRequest,
)
from flywheel_feature.offline.partitioned.build import BuiltInputs, JoinLimits, PartitionedBuild
from flywheel_feature.offline.ports import PartitionEngine, TrainingSets
from flywheel_feature.offline.unfinished import (
    attempt_uri,
    finish_in_thread,
    remove,
    remove_on_failure,
    remove_other_attempts,
    work_name,
)
from flywheel_feature.tables.blocking import answered_in_time
from flywheel_feature.tables.content_hash import content_hash
from flywheel_feature.tables.file_columns import read_columns
from flywheel_feature.tables.ports import Archive, Piece, Tables
from flywheel_feature.tables.sources import READERS, SourceReader, wait_until_archived

_VERSIONS = "source_versions"


class TrainingSetBuilder:
    """Use case of BuildTrainingSet: `validate` during the call, `build` in the job."""

    def __init__(
        self,
        *,
        catalogs: CatalogReader,
        tables: Tables,
        archive: Archive,
        training_sets: TrainingSets,
        clock: Clock,
        archive_wait_seconds: float = 60.0,
        engines: Sequence[PartitionEngine] = (),
        limits: JoinLimits | None = None,
    ) -> None:
        self._catalogs = catalogs
        self._tables = tables
        self._archive = archive
        self._training_sets = training_sets
        self._clock = clock
        self._archive_wait_seconds = archive_wait_seconds
        self._reader = SourceReader(tables, archive)
        self._partitioned = PartitionedBuild(tables, engines, limits or JoinLimits())

    async def validate(self, request: TrainingSetRequest) -> None:
        """Check all that can be checked before the job runs, without reading rows.

        Raises NotFound UNKNOWN_FEATURE_SET and UNKNOWN_SOURCE, InvalidArgument WRONG_SPINE, UNKNOWN_FIELD and
        INVALID_EXPRESSION.
        """
        catalog = await self._catalogs(request.project)
        plan = _plan(catalog, request)
        await answered_in_time(partial(self._with_extras, plan, request, catalog))
        self._partitioned.check(request)

    def _with_extras(self, plan: JoinPlan, request: TrainingSetRequest, catalog: Catalog) -> JoinPlan:
        """The plan with the extra columns of the spine. Raises what `validate` raises about spines."""
        spine = request.spine
        if isinstance(spine, SourceSpine):
            source = catalog.source(spine.source)
            spines.check_source_spine(plan, spine, source)
            extras = spines.source_extras(spine, source)
        else:
            first, *others = self._stored(spine)
            spines.check_file_spine(plan, spine, first)
            extras = spines.file_extras(plan, spine, [first, *others])
        plan = replace(plan, extras=extras)
        check_extras(plan, request)
        return plan

    def _stored(self, spine: FileSpine) -> list[Mapping[str, pl.DataType]]:
        """The stored types of the columns of each file of a spine; partition columns are text."""
        snapshot = self._tables.snapshot(spine.uri, TableFormat.PARQUET)

        def of_file(file: Piece) -> Mapping[str, pl.DataType]:
            stored = self._tables.snapshot(file.uri, TableFormat.PARQUET).stored
            return {**{name: pl.String() for name, _ in file.partition}, **stored}

        with ThreadPoolExecutor(READERS) as readers:
            return [snapshot.stored, *readers.map(of_file, snapshot.files[1:])]

    async def build(
        self, request: TrainingSetRequest, job: ResumableJob, work: str = "", *, reached: int = 0
    ) -> TrainingSet:
        """Build and register the set. A restart after a crash gives the same set (equal inputs, equal bytes).

        Delta tables are read in the versions that the first start of the job found. A build that fails or is
        cancelled leaves no files. `reached` is the percentage that an earlier start of the job reported.
        `work` names the work: a build in partitions that is started again under the same name continues where
        it stopped.

        Raises what `validate` raises, FailedPrecondition ARCHIVE_BEHIND and SOURCE_MISMATCH, and the errors
        of the ports.
        """
        started = self._clock.monotonic()
        catalog = await self._catalogs(request.project)
        plan = _plan(catalog, request)
        existing = await self._training_sets.get(request.project, request.training_set_id)
        if existing is not None:
            return await self._existing(request, plan, existing)
        stages = Stages(job, reached)
        sources = [view.source for view in plan.stored]
        if isinstance(request.spine, SourceSpine):
            sources = [*sources, catalog.source(request.spine.source)]
        unique = {s.name: s for s in sources}.values()
        reader = await self._pinned(unique, job)
        await wait_until_archived(
            self._archive, self._clock, unique, timeout_seconds=self._archive_wait_seconds, job=stages
        )
        plan = await asyncio.to_thread(self._with_extras, plan, request, catalog)
        name = work_name(request.project, work or request.training_set_id)
        built = await self._in_partitions(request, plan, catalog, reader, name, stages)
        if built is None:
            files = await self._in_memory(request, plan, catalog, reader, name, stages)
            built = BuiltInputs(files, reader.versions)
        registered = await self._register(request, plan, self._training_set(request, plan, built, started))
        stages.begin(until=100)
        stages.progress(1, 1, "training sets", "registered")
        return registered

    async def _pinned(self, sources: Collection[Source], job: ResumableJob) -> SourceReader:
        """A pinned reader; the job stores its Delta versions before the first read, in case it is resumed."""
        if not any(isinstance(s.kind, ParquetSource) and s.kind.format == TableFormat.DELTA for s in sources):
            return self._reader.pinned()
        known = json.loads(job.checkpoint)[_VERSIONS] if job.checkpoint else {}
        reader = await self._reader.pinned_at(sources, known)
        if not job.checkpoint:
            await job.save_checkpoint(json.dumps({_VERSIONS: reader.versions}).encode())
        return reader

    async def _in_partitions(
        self,
        request: TrainingSetRequest,
        plan: JoinPlan,
        catalog: Catalog,
        reader: SourceReader,
        name: str,
        job: Stages,
    ) -> BuiltInputs | None:
        job.begin(until=95)
        try:
            return await self._partitioned.build(request, plan, catalog, reader, name, job)
        except BaseException as error:
            # If the job may be resumed by another process, its files are kept.
            if job.cancelled or (isinstance(error, FlywheelError) and not error.retryable):
                await remove(self._tables, self._partitioned.uri(request, name))
            raise

    def _training_set(
        self, request: TrainingSetRequest, plan: JoinPlan, built: BuiltInputs, started: float
    ) -> TrainingSet:
        files = built.files
        return TrainingSet(
            project=request.project,
            id=request.training_set_id,
            feature_set=plan.feature_set.name,
            view_versions=plan.view_versions,
            spine=request.spine,
            mode=request.mode,
            uri=files.uri,
            content_hash=files.content_hash,
            row_count=files.row_count,
            label_mean=files.label_mean,
            min_time=files.min_time,
            max_time=files.max_time,
            schema=files.schema,
            profile=files.profile,
            unlabelled_count=files.unlabelled_count,
            late_events=files.late_events,
            created_at=self._clock.now(),
            build_seconds=self._clock.monotonic() - started,
            short_feature_names=request.short_feature_names,
            source_versions=built.source_versions,
            # A job that an earlier version of this service started has no extra columns.
            extra_columns=tuple(f.name for f in files.schema if f in plan.extras),
        )

    async def _spine(
        self, request: TrainingSetRequest, plan: JoinPlan, catalog: Catalog, reader: SourceReader
    ) -> tuple[pl.DataFrame, int]:
        """(the prepared rows in the order of the training set; the number of rows without label)."""
        spine = request.spine
        if isinstance(spine, SourceSpine):
            source = catalog.source(spine.source)
            high = spine.known_before + 1 if spine.known_before else None
            keys = [k.name for k in plan.feature_set.join_keys]
            rows = await reader.read(source, spines.source_columns(plan, spine, source), high=high, keys=keys)
            frame = await asyncio.to_thread(spines.from_source, plan, spine, source, rows)
            labelled = await asyncio.to_thread(lambda: spines.in_order(spines.labelled(frame)))
        else:
            frame = await asyncio.to_thread(self._file_rows, plan, spine)
            labelled = spines.labelled(frame)
        return labelled, frame.height - labelled.height

    def _file_rows(self, plan: JoinPlan, spine: FileSpine) -> pl.DataFrame:
        files = self._tables.snapshot(spine.uri, TableFormat.PARQUET).files
        columns, required = spines.file_columns(plan, spine), spines.required_columns(plan, spine)
        with ThreadPoolExecutor(READERS) as readers:
            rows = readers.map(
                lambda file: read_columns(self._tables, file, columns, required=required), files
            )
            return pl.concat([spines.from_file(plan, spine, part) for part in rows])

    async def _in_memory(
        self,
        request: TrainingSetRequest,
        plan: JoinPlan,
        catalog: Catalog,
        reader: SourceReader,
        name: str,
        job: Stages,
    ) -> BuiltFiles:
        job.begin(until=10, since=0)
        job.progress(0, 0, message="reading the spine")
        spine, unlabelled = await self._spine(request, plan, catalog, reader)
        job.begin(until=70)
        joined = spine.drop(f.name for f in plan.extras)
        late: dict[str, int] = {}
        features = await FeatureJoiner(reader).join(
            plan, joined, EVENT_TIMESTAMP, request.mode, job, late=late
        )
        frame = assemble(plan, request, spine, features)
        digest = await asyncio.to_thread(content_hash, frame)
        uri = attempt_uri(self._tables, request, name, digest)
        job.begin(until=95)
        async with remove_on_failure(self._tables, uri):
            for part, offset in enumerate(range(0, max(frame.height, 1), ROWS_PER_FILE)):
                job.check_cancelled()
                job.progress(offset, frame.height, "rows", f"writing part {part}")
                rows = frame.slice(offset, ROWS_PER_FILE)
                await finish_in_thread(partial(self._tables.write, f"{uri}part-{part:05d}.parquet", rows))
            job.progress(frame.height, frame.height, "rows", "profiling columns")
            built = await asyncio.to_thread(of_frame, plan, request, frame, uri, unlabelled, digest)
            return replace(built, late_events=late)

    async def _register(
        self, request: TrainingSetRequest, plan: JoinPlan, training_set: TrainingSet
    ) -> TrainingSet:
        try:
            await self._training_sets.create(training_set)
        except TrainingSetExists:
            existing = await self._training_sets.get(request.project, request.training_set_id)
            if existing is None:
                raise
            return await self._existing(request, plan, existing)
        await remove_other_attempts(self._tables, training_set)
        return training_set

    async def _existing(
        self, request: TrainingSetRequest, plan: JoinPlan, existing: TrainingSet
    ) -> TrainingSet:
        """The existing set; raises AlreadyExists TRAINING_SET_EXISTS when it differs from the requested one.

        An earlier process may have died after registering the set. Removes the files of other attempts.
        """
        requested = (plan.feature_set.name, request.spine, request.mode, request.short_feature_names)
        found = (existing.feature_set, existing.spine, existing.mode, existing.short_feature_names)
        if requested != found:
            raise TrainingSetExists(
                f"{request.name} exists and differs: training sets are immutable, choose another id."
            )
        await remove_other_attempts(self._tables, existing)
        return existing


def _plan(catalog: Catalog, request: TrainingSetRequest) -> JoinPlan:
    plan = plan_join(catalog, catalog.feature_set(request.feature_set, request.feature_set_version))
    check_names(plan, request)
    return plan
