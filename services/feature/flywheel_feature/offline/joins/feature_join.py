"""Joining all features of a feature set to a spine: batch rows, stream windows, on-demand expressions."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from flywheel_common.errors import WrongType
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.errors import WrongSpine
from flywheel_feature.definitions.frame_types import converted
from flywheel_feature.definitions.model import (
    BatchView,
    FeatureSet,
    Field,
    OnDemandView,
    Source,
    StreamView,
    VersionRef,
    View,
    column_name,
)
from flywheel_feature.expressions.sql import CompiledExpressions, compile_expressions
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.joins.stored_join import StoredView
from flywheel_feature.offline.model import JoinMode
from flywheel_feature.tables.sources import SourceReader


@dataclass(frozen=True, slots=True)
class ComputedView:
    """An on-demand view whose features are computed after the join."""

    view: View
    compiled: CompiledExpressions
    inputs: dict[str, tuple[VersionRef, str]]
    """Column of an expression → view version and feature; other columns are request fields."""


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """A join of one feature set: its views resolved, its expressions compiled."""

    feature_set: FeatureSet
    stored: tuple[StoredView, ...]
    computed: tuple[ComputedView, ...]
    outputs: tuple[tuple[VersionRef, str, Field], ...]
    """Per feature of the set, in order: view version, feature name, column of the result."""
    extras: tuple[Field, ...] = ()
    """The columns of the spine that are carried into the training set and used by no join."""

    @property
    def stream_sources(self) -> list[Source]:
        return list({v.source.name: v.source for v in self.stored if v.source.is_stream}.values())

    @property
    def view_versions(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys([*(v.view.name for v in self.stored), *(v.view.name for v in self.computed)])
        )


@dataclass(slots=True)
class _Wanted:
    """The views to read, and the features wanted from each."""

    views: dict[VersionRef, View] = field(default_factory=dict)
    features: dict[VersionRef, dict[str, None]] = field(default_factory=dict)

    def add(self, view: View, feature: str) -> None:
        self.views[view.ref] = view
        self.features.setdefault(view.ref, {})[feature] = None


def plan_join(catalog: Catalog, feature_set: FeatureSet) -> JoinPlan:
    """Resolve definitions and compile expressions. Raises NotFound for a missing definition."""
    views = {ref.id: catalog.view(ref.id, ref.version) for ref in feature_set.views}
    wanted, computed_wanted = _Wanted(), _Wanted()
    outputs: list[tuple[VersionRef, str, Field]] = []
    for text, column in zip(feature_set.features, feature_set.schema, strict=True):
        view_id, _, feature = text.partition(":")
        view = views[view_id]
        outputs.append((view.ref, feature, column))
        (computed_wanted if isinstance(view.kind, OnDemandView) else wanted).add(view, feature)
    computed = [
        _computed(catalog, computed_wanted.views[ref], names, wanted)
        for ref, names in computed_wanted.features.items()
    ]
    stored = [_stored(catalog, wanted.views[ref], names) for ref, names in wanted.features.items()]
    return JoinPlan(feature_set, tuple(stored), tuple(computed), tuple(outputs))


def _stored(catalog: Catalog, view: View, names: Iterable[str]) -> StoredView:
    assert isinstance(view.kind, (BatchView, StreamView))
    return StoredView(view, catalog.entity(view.entity), catalog.source(view.kind.source), tuple(names))


def _computed(catalog: Catalog, view: View, names: Collection[str], wanted: _Wanted) -> ComputedView:
    assert isinstance(view.kind, OnDemandView)
    schema: dict[str, int] = {}
    sizes: dict[str, int] = {}
    origin: dict[str, tuple[VersionRef, str]] = {}
    for ref in view.inputs:
        for feature in catalog.view(ref.id, ref.version).features:
            column = column_name(ref.id, feature.name)
            schema[column], sizes[column] = feature.data_type, feature.vector_size
            origin[column] = (ref, feature.name)
    for source_id in view.kind.request_sources:
        for f in catalog.source(source_id).schema:
            schema[f.name], sizes[f.name] = f.data_type, f.vector_size
    chosen = [e for e in view.kind.expressions if e.feature.name in names]
    sizes.update({e.feature.name: e.feature.vector_size for e in chosen})
    compiled = compile_expressions(
        [(e.feature.name, e.feature.data_type, e.sql) for e in chosen], schema, vector_sizes=sizes
    )
    used = {c: origin[c] for c in compiled.input_columns if c in origin}
    for ref, feature_name in used.values():
        wanted.add(catalog.view(ref.id, ref.version), feature_name)
    return ComputedView(view, compiled, used)


class FeatureJoiner:
    """Computes feature sets offline; stateless, so that many jobs may share one."""

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader

    async def join(
        self,
        plan: JoinPlan,
        spine: pl.DataFrame,
        spine_time: str,
        mode: JoinMode,
        job: JobProgress,
        applied: Mapping[VersionRef, pl.Series] | None = None,
        *,
        late: dict[str, int] | None = None,
    ) -> pl.DataFrame:
        """One column per feature of the set, named `view__feature`, rows as in `spine`.

        `spine` has the join keys, the request fields and `spine_time`, typed as declared. Stream views in
        `applied` are computed from exactly the events named there (applied_windows.py), instead of those up
        to `spine_time`. `late` gets the number of late events per view version that has some.
        """
        found: dict[tuple[VersionRef, str], pl.Series] = {}
        steps = len(plan.stored) + 1
        for step, stored in enumerate(plan.stored):
            job.check_cancelled()
            job.progress(step, steps, "views", f"joining {stored.view.id}")
            exact = (applied or {}).get(stored.view.ref)
            joined = await self._join_one(stored, spine, spine_time, mode, exact, late)
            found.update({(stored.view.ref, name): joined.get_column(name) for name in stored.wanted})
        answer = await asyncio.to_thread(with_computed, plan, found, spine)
        job.progress(steps, steps, "views", "joined")
        return answer

    async def _join_one(
        self,
        stored: StoredView,
        spine: pl.DataFrame,
        spine_time: str,
        mode: JoinMode,
        applied: pl.Series | None,
        late: dict[str, int] | None,
    ) -> pl.DataFrame:
        times = spine.select(
            pl.col(spine_time).dt.epoch("us").min().alias("low"),
            pl.col(spine_time).dt.epoch("us").max().alias("high"),
        )
        earliest, latest = times.row(0)
        low, high = stored.between(earliest, latest, mode)
        if applied is not None:
            # Applied events may be later than the spine: in the current tile, or as the newest event.
            events = await self._reader.read(stored.source, stored.fields, positions=True)
            return await asyncio.to_thread(
                lambda: stored.join_applied(spine, spine_time, applied, stored.kept(events, late))
            )
        rows = await self._reader.read(
            stored.source,
            stored.fields,
            low=low,
            high=high,
            pushed_to=stored.pushed_to,
            keys=stored.keys,
        )
        return await asyncio.to_thread(lambda: stored.join(spine, spine_time, mode, stored.kept(rows, late)))


Found = dict[tuple[VersionRef, str], pl.Series]
"""The values of each (view version, feature), rows as in the spine."""


def with_computed(plan: JoinPlan, stored: Found, spine: pl.DataFrame) -> pl.DataFrame:
    """One column per feature of the set; on-demand features are computed here."""
    found = dict(stored)
    for computed in plan.computed:
        columns = {c: found[origin].alias(c) for c, origin in computed.inputs.items()}
        columns.update({c: spine.get_column(c) for c in computed.compiled.input_columns if c not in columns})
        answer = computed.compiled.evaluate(pl.DataFrame(columns))
        found.update({(computed.view.ref, name): answer.get_column(name) for name in computed.compiled.names})
    return pl.DataFrame([found[ref, feature].alias(column.name) for ref, feature, column in plan.outputs])


def typed_spine(frame: pl.DataFrame, plan: JoinPlan) -> pl.DataFrame:
    """The spine with join keys, request fields and extra columns as their types. Raises WrongSpine."""
    declared = (*plan.feature_set.join_keys, *plan.feature_set.request_fields)
    fields = {f.name: f for f in (*declared, *plan.extras)}
    missing = [name for name in fields if name not in frame.columns]
    if missing:
        raise WrongSpine(
            f"The spine has no column {missing[0]!r}; {plan.feature_set.name} needs: {', '.join(fields)}.",
            field=missing[0],
        )
    try:
        return frame.with_columns(
            [converted(frame, n, f.data_type, f.vector_size) for n, f in fields.items()]
        )
    except WrongType as error:
        raise WrongSpine(f"The spine does not fit its declared types. {error.message}") from error
