"""Building training sets: a spine, the features of a feature set as they were known, a label, a manifest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import polars as pl

from flywheel_common.clock import Clock
from flywheel_common.errors import AlreadyExists, InvalidArgument
from flywheel_feature.catalog import Catalog
from flywheel_feature.definitions import DataType, Field, ParquetSource, Source, TableFormat
from flywheel_feature.expressions import compile_label
from flywheel_feature.offline.content_hash import content_hash
from flywheel_feature.offline.datatypes import TIMESTAMP, to_type
from flywheel_feature.offline.feature_join import FeatureJoiner, JoinPlan, plan_join, typed_spine
from flywheel_feature.offline.feature_names import check_names, feature_names
from flywheel_feature.offline.ports import (
    Archive,
    Catalogs,
    JobProgress,
    ResumableJob,
    Tables,
    TrainingSets,
)
from flywheel_feature.offline.profile import profile_columns
from flywheel_feature.offline.sources import SourceReader, wait_until_archived
from flywheel_feature.offline.stages import Stages
from flywheel_feature.offline.training_sets import (
    EVENT_TIMESTAMP,
    LABEL,
    FileSpine,
    SourceSpine,
    Spine,
    TrainingSet,
    TrainingSetRequest,
)
from flywheel_feature.offline.unfinished import attempt_uri, remove_others, undisturbed, unfinished

ROWS_PER_FILE = 250_000
_TABLE_VERSIONS = "table_versions"


class TrainingSetBuilder:
    """Use case of BuildTrainingSet: `validate` when it is asked for, `build` in the job."""

    def __init__(
        self, *, catalogs: Catalogs, tables: Tables, archive: Archive, training_sets: TrainingSets, clock: Clock,
        archive_wait_seconds: float = 60.0,
    ) -> None:  # fmt: skip
        self._catalogs = catalogs
        self._tables = tables
        self._archive = archive
        self._training_sets = training_sets
        self._clock = clock
        self._archive_wait_seconds = archive_wait_seconds
        self._reader = SourceReader(tables, archive)

    async def validate(self, request: TrainingSetRequest) -> None:
        """Everything that can be known before the job runs. Reads no rows.

        Raises NotFound UNKNOWN_FEATURE_SET, UNKNOWN_SOURCE; InvalidArgument WRONG_SPINE, UNKNOWN_FIELD, INVALID_EXPRESSION.
        """
        catalog = await self._catalogs(request.project)
        plan = _plan(catalog, request)
        if isinstance(request.spine, SourceSpine):
            self._check_source_spine(plan, request.spine, catalog.source(request.spine.source))
        else:
            stored = await asyncio.to_thread(self._tables.schema, request.spine.uri)
            self._check_file_spine(plan, request.spine, stored)

    async def build(self, request: TrainingSetRequest, job: ResumableJob, reached: int = 0) -> TrainingSet:
        """Build and register the set. Starting again after a crash gives the same set (equal inputs, equal bytes).

        Delta tables are read at the versions that the job's first start found. A build that fails or is cancelled leaves no
        file. `reached`: the percentage that an earlier start of the job has told.
        Raises what `validate` raises, FailedPrecondition ARCHIVE_BEHIND, SOURCE_MISMATCH, and the errors of the ports.
        """
        started = self._clock.monotonic()
        catalog = await self._catalogs(request.project)
        plan = _plan(catalog, request)
        existing = await self._training_sets.get(request.project, request.training_set_id)
        if existing is not None:
            return await self._found(request, plan, existing)
        stages = Stages(job, reached)
        sources = [view.source for view in plan.stored]
        if isinstance(request.spine, SourceSpine):
            sources = [*sources, catalog.source(request.spine.source)]
        unique = {s.name: s for s in sources}.values()
        reader = await self._pinned(unique, job)
        await wait_until_archived(
            self._archive, self._clock, unique, timeout_seconds=self._archive_wait_seconds, job=stages
        )
        stages.begin(until=10)
        stages.progress(0, 0, message="reading the spine")
        spine, unlabelled = await self._spine(request.spine, plan, catalog, reader)
        stages.begin(until=70)
        features = await FeatureJoiner(reader).join(plan, spine, EVENT_TIMESTAMP, request.mode, stages)
        frame = _assemble(plan, request, spine, features)
        stages.begin(until=95)
        training_set = await self._store(request, plan, frame, unlabelled, started, reader.versions, stages)
        registered = await self._register(request, plan, training_set)
        stages.begin(until=100)
        stages.progress(1, 1, "training set", "registered")
        return registered

    async def _pinned(self, sources: Iterable[Source], job: ResumableJob) -> SourceReader:
        """Delta versions are remembered by the job before anything is read, so that whoever goes on reads the same."""
        if not any(isinstance(s.kind, ParquetSource) and s.kind.format == TableFormat.DELTA for s in sources):
            return self._reader.pinned()
        known = json.loads(job.checkpoint)[_TABLE_VERSIONS] if job.checkpoint else {}
        reader = await self._reader.pinned_at(sources, known)
        if not job.checkpoint:
            await job.save_checkpoint(json.dumps({_TABLE_VERSIONS: reader.versions}).encode())
        return reader

    def _check_source_spine(self, plan: JoinPlan, spine: SourceSpine, source: Source) -> None:
        if not source.timestamp_field:
            raise InvalidArgument(
                f"Source {source.id!r} comes with requests and has no history to read.", reason="WRONG_SPINE"
            )
        if spine.start >= spine.end:
            raise InvalidArgument("The spine's start_time must be before its end_time.", reason="WRONG_SPINE")
        wanted = source.field(spine.timestamp_field)
        if wanted is None or wanted.data_type != DataType.TIMESTAMP:
            raise InvalidArgument(
                f"timestamp_field {spine.timestamp_field!r} is not a TIMESTAMP field of source {source.id!r}.",
                reason="UNKNOWN_FIELD",
            )
        for field in _spine_fields(plan):
            if source.field(field.name) is None:
                raise InvalidArgument(
                    f"Source {source.id!r} has no field {field.name!r}, which {plan.feature_set.name} needs: add it to the source.",
                    reason="WRONG_SPINE",
                    field=field.name,
                )
        if spine.label:
            compile_label(spine.label, {f.name: f.data_type for f in source.schema})

    def _check_file_spine(self, plan: JoinPlan, spine: FileSpine, stored: dict[str, pl.DataType]) -> None:
        needed = [
            spine.timestamp_field,
            *(f.name for f in _spine_fields(plan)),
            *([spine.label_field] if spine.label_field else []),
        ]
        missing = [name for name in needed if name not in stored]
        if missing:
            raise InvalidArgument(
                f"{spine.uri} has no column {missing[0]!r}; it needs: {', '.join(needed)}.",
                reason="WRONG_SPINE",
                field=missing[0],
            )
        if not isinstance(stored[spine.timestamp_field], (pl.Datetime, pl.Date)):
            raise InvalidArgument(
                f"Column {spine.timestamp_field!r} of {spine.uri} is no timestamp.", reason="WRONG_SPINE"
            )
        if spine.label_field and not (
            stored[spine.label_field].is_numeric() or stored[spine.label_field] == pl.Boolean
        ):
            raise InvalidArgument(
                f"Column {spine.label_field!r} of {spine.uri} is no number or bool.", reason="WRONG_SPINE"
            )

    async def _spine(
        self, spine: Spine, plan: JoinPlan, catalog: Catalog, reader: SourceReader
    ) -> tuple[pl.DataFrame, int]:
        """Keys, request fields, EVENT_TIMESTAMP and LABEL in canonical order; and how many rows had no label."""
        names = [f.name for f in _spine_fields(plan)]
        if isinstance(spine, SourceSpine):
            frame = await self._source_rows(spine, plan, names, catalog.source(spine.source), reader)
        else:
            frame = await self._file_rows(spine, plan, names)
        labelled = (
            frame.filter(pl.col(LABEL).is_not_null() & pl.col(LABEL).is_not_nan())
            if LABEL in frame.columns
            else frame
        )
        # Sorted by every column, rows that tie are equal: the order does not depend on how the source was read.
        order = [EVENT_TIMESTAMP, *names, *([LABEL] if LABEL in frame.columns else [])]
        return await asyncio.to_thread(labelled.sort, order), frame.height - labelled.height

    async def _source_rows(
        self, spine: SourceSpine, plan: JoinPlan, names: list[str], source: Source, reader: SourceReader
    ) -> pl.DataFrame:
        self._check_source_spine(plan, spine, source)
        label = (
            compile_label(spine.label, {f.name: f.data_type for f in source.schema}) if spine.label else None
        )
        known = spine.known_before + 1 if spine.known_before else None
        rows = await reader.read(
            source, [*names, spine.timestamp_field, *(label.input_columns if label else ())], high=known
        )
        time = pl.col(spine.timestamp_field)
        rows = rows.filter(time.dt.epoch("us").is_between(spine.start, spine.end, closed="left"))
        frame = rows.select(*names, time.alias(EVENT_TIMESTAMP))
        if label is not None:
            frame = frame.hstack(label.evaluate(rows).rename({label.names[0]: LABEL}))
        return typed_spine(frame, plan)

    async def _file_rows(self, spine: FileSpine, plan: JoinPlan, names: list[str]) -> pl.DataFrame:
        stored = await asyncio.to_thread(self._tables.schema, spine.uri)
        self._check_file_spine(plan, spine, stored)
        columns = [*names, spine.timestamp_field, *([spine.label_field] if spine.label_field else [])]
        rows = await asyncio.to_thread(self._tables.read, spine.uri, columns)
        if rows.get_column(spine.timestamp_field).null_count():
            raise InvalidArgument(
                f"Column {spine.timestamp_field!r} of {spine.uri} has nulls: every spine row needs a time.",
                reason="WRONG_SPINE",
            )
        time = to_type(spine.timestamp_field, rows.schema[spine.timestamp_field], DataType.TIMESTAMP).alias(
            EVENT_TIMESTAMP
        )
        label = [pl.col(spine.label_field).cast(pl.Float64).alias(LABEL)] if spine.label_field else []
        return typed_spine(rows.select(*names, time, *label), plan)

    async def _store(
        self,
        request: TrainingSetRequest,
        plan: JoinPlan,
        frame: pl.DataFrame,
        unlabelled: int,
        started: float,
        versions: Mapping[str, int],
        job: JobProgress,
    ) -> TrainingSet:
        fields = _fields(plan, request, frame)
        digest = await asyncio.to_thread(content_hash, frame)
        uri = attempt_uri(self._tables, request, digest)
        async with unfinished(self._tables, uri):
            for part, offset in enumerate(range(0, max(frame.height, 1), ROWS_PER_FILE)):
                job.check_cancelled()
                job.progress(offset, frame.height, "rows", f"writing part {part}")
                await undisturbed(
                    partial(
                        self._tables.write,
                        f"{uri}part-{part:05d}.parquet",
                        frame.slice(offset, ROWS_PER_FILE),
                    )
                )
            job.progress(frame.height, frame.height, "rows", "profiling columns")
            profiled = [f for f in fields if f.name in {LABEL, *feature_names(plan, request)}]
            profile = await asyncio.to_thread(profile_columns, frame, profiled)
        low, high = frame.select(
            pl.col(EVENT_TIMESTAMP).dt.epoch("us").min().alias("low"),
            pl.col(EVENT_TIMESTAMP).dt.epoch("us").max().alias("high"),
        ).row(0)
        mean = frame.get_column(LABEL).mean() if LABEL in frame.columns and frame.height else None
        return TrainingSet(
            project=request.project,
            id=request.training_set_id,
            feature_set=plan.feature_set.name,
            view_versions=plan.view_versions,
            spine=request.spine,
            mode=request.mode,
            uri=uri,
            content_hash=digest,
            row_count=frame.height,
            label_mean=float(mean) if isinstance(mean, (int, float)) else 0.0,
            min_time=low or 0,
            max_time=high or 0,
            schema=tuple(fields),
            profile=profile,
            unlabelled_count=unlabelled,
            created_at=self._clock.now(),
            build_seconds=self._clock.monotonic() - started,
            short_feature_names=request.short_feature_names,
            table_versions=versions,
        )

    async def _register(
        self, request: TrainingSetRequest, plan: JoinPlan, training_set: TrainingSet
    ) -> TrainingSet:
        try:
            await self._training_sets.create(training_set)
        except AlreadyExists:
            existing = await self._training_sets.get(request.project, request.training_set_id)
            if existing is None:
                raise
            return await self._found(request, plan, existing)
        await remove_others(self._tables, training_set)
        return training_set

    async def _found(self, request: TrainingSetRequest, plan: JoinPlan, existing: TrainingSet) -> TrainingSet:
        """The set that exists; what other attempts at it left is removed."""
        same = _same(request, plan, existing)
        await remove_others(self._tables, same)
        return same


def _same(request: TrainingSetRequest, plan: JoinPlan, existing: TrainingSet) -> TrainingSet:
    """The set that exists, if it is what was asked for: the process may have died between commit and the job's end."""
    asked = (plan.feature_set.name, request.spine, request.mode, request.short_feature_names)
    if asked != (existing.feature_set, existing.spine, existing.mode, existing.short_feature_names):
        raise AlreadyExists(
            f"{request.name} exists and differs: training sets are immutable, choose another id.",
            reason="TRAINING_SET_EXISTS",
        )
    return existing


def _plan(catalog: Catalog, request: TrainingSetRequest) -> JoinPlan:
    plan = plan_join(catalog, catalog.feature_set(request.feature_set, request.feature_set_version))
    check_names(plan, request)
    return plan


def _spine_fields(plan: JoinPlan) -> list[Field]:
    """Join keys, then the request fields that are not join keys too."""
    keys = plan.feature_set.join_keys
    return [*keys, *(f for f in plan.feature_set.request_fields if f.name not in {k.name for k in keys})]


def _assemble(
    plan: JoinPlan, request: TrainingSetRequest, spine: pl.DataFrame, features: pl.DataFrame
) -> pl.DataFrame:
    keys = [f.name for f in plan.feature_set.join_keys]
    others = [f.name for f in _spine_fields(plan) if f.name not in keys]
    named = features.rename(dict(zip(features.columns, feature_names(plan, request), strict=True)))
    parts = [spine.select(*keys, pl.col(EVENT_TIMESTAMP).cast(TIMESTAMP), *others), named]
    if LABEL in spine.columns:
        parts.append(spine.select(LABEL))
    return pl.concat(parts, how="horizontal")


def _fields(plan: JoinPlan, request: TrainingSetRequest, frame: pl.DataFrame) -> list[Field]:
    known = {f.name: f for f in _spine_fields(plan)}
    names = feature_names(plan, request)
    known |= {n: replace(f, name=n) for n, f in zip(names, plan.feature_set.schema, strict=True)}
    known[EVENT_TIMESTAMP] = Field(EVENT_TIMESTAMP, DataType.TIMESTAMP)
    known[LABEL] = Field(LABEL, DataType.FLOAT64)
    return [known[name] for name in frame.columns]
