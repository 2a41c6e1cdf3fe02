"""The skew check: recomputes served features offline as of the same time and compares them value by value.

If the log has the stream offsets of an answer (`applied__` columns), stream features are recomputed from
exactly those events. Otherwise they are recomputed from the events up to the time of the prediction, which
gives the same values only if the streams had been applied that far.

Values that were served as NOT_YET_VALID are counted apart: the online store keeps one row per entity and does
not know the one before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl
from prometheus_client import Counter

from flywheel_common.clock import Clock
from flywheel_feature.definitions.catalog import CatalogReader
from flywheel_feature.definitions.frame_types import TIMESTAMP
from flywheel_feature.definitions.model import Field, VersionRef
from flywheel_feature.jobs.progress import JobProgress
from flywheel_feature.offline.errors import InvalidArchiveFeatureSet, WrongArchive
from flywheel_feature.offline.joins.feature_join import FeatureJoiner, JoinPlan, plan_join, typed_spine
from flywheel_feature.offline.model import JoinMode
from flywheel_feature.offline.prediction_log import (
    EVENT_TIME,
    FEATURE_SET,
    NOT_YET_VALID,
    PREDICTION_ID,
    read_answers,
)
from flywheel_feature.tables.ports import Archive, Tables
from flywheel_feature.tables.sources import SourceReader, wait_until_archived
from flywheel_feature.windows.applied_offsets import applied_name

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-7
"""Numbers that differ by less are equal: sums that cancel out differ by rounding."""
EXAMPLES = 5
ENTITY_PREFIX, REQUEST_PREFIX, APPLIED_PREFIX = "entity__", "request__", "applied__"

_VALUES = Counter(
    "flywheel_feature_skew_values",
    "Served values that skew checks recomputed offline",
    ["project", "feature", "result"],
)


@dataclass(frozen=True, slots=True)
class SkewRequest:
    project: str
    predictions_uri: str
    start: int | None = None
    end: int | None = None
    """start <= event time < end, microseconds."""
    sample_limit: int = 0
    """At most this many predictions, evenly spread in time; 0: all."""


@dataclass(slots=True)
class FeatureSkew:
    feature: str
    compared: int = 0
    mismatches: int = 0
    not_yet_valid: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SkewReport:
    predictions: int
    values: int
    mismatches: int
    features: tuple[FeatureSkew, ...]
    exact_predictions: int
    """Predictions recomputed from exactly the stream events that were applied when they were made."""
    not_yet_valid: int
    """Values that were not compared."""

    def to_json(self) -> dict[str, object]:
        """The result of the job; see flywheel.feature.v1.SkewReport."""
        return {
            "predictions": self.predictions,
            "values": self.values,
            "mismatches": self.mismatches,
            "exact_predictions": self.exact_predictions,
            "not_yet_valid": self.not_yet_valid,
            "features": [
                {
                    "feature": f.feature,
                    "compared_count": f.compared,
                    "mismatch_count": f.mismatches,
                    "not_yet_valid_count": f.not_yet_valid,
                    "examples": list(f.examples),
                }
                for f in self.features
            ],
        }


class SkewCheck:
    """Use case of CheckSkew."""

    def __init__(
        self,
        *,
        catalogs: CatalogReader,
        tables: Tables,
        archive: Archive,
        clock: Clock,
        archive_wait_seconds: float = 60.0,
    ) -> None:
        self._catalogs = catalogs
        self._tables = tables
        self._archive = archive
        self._clock = clock
        self._archive_wait_seconds = archive_wait_seconds
        self._joiner = FeatureJoiner(SourceReader(tables, archive))

    async def check(self, request: SkewRequest, job: JobProgress) -> SkewReport:
        """Compare all logged features of all predictions that a model made.

        Raises NotFound UNKNOWN_TABLE for an empty archive, FailedPrecondition WRONG_ARCHIVE when columns are
        missing, FailedPrecondition ARCHIVE_BEHIND, and the errors of the ports.
        """
        job.progress(0, 0, "predictions", "reading the predictions")
        logged = await asyncio.to_thread(
            read_answers,
            self._tables,
            request.predictions_uri,
            request.start,
            request.end,
            request.sample_limit,
        )
        totals: dict[str, FeatureSkew] = {}
        exact = 0
        for name, rows in _by_feature_set(logged):
            plan = await self._plan(request.project, name)
            await wait_until_archived(
                self._archive,
                self._clock,
                plan.stream_sources,
                timeout_seconds=self._archive_wait_seconds,
                job=job,
            )
            compared = [f for f in plan.feature_set.schema if f.name in rows.columns]
            logs_offsets = _logs_offsets(rows, plan)
            exact += int(logs_offsets.sum())
            for part, applied in _parts(rows, plan, logs_offsets):
                spine = _spine(part, plan)
                offline = await self._joiner.join(
                    plan, spine, EVENT_TIME, JoinMode.POINT_IN_TIME, job, applied
                )
                await asyncio.to_thread(_compare, part, offline, compared, _describe(part), totals)
        features = tuple(totals[name] for name in sorted(totals))
        for total in features:
            _VALUES.labels(request.project, total.feature, "mismatch").inc(total.mismatches)
            _VALUES.labels(request.project, total.feature, "match").inc(total.compared - total.mismatches)
            _VALUES.labels(request.project, total.feature, "not_yet_valid").inc(total.not_yet_valid)
        return SkewReport(
            sum(rows.height for rows in logged),
            sum(f.compared for f in features),
            sum(f.mismatches for f in features),
            features,
            exact,
            sum(f.not_yet_valid for f in features),
        )

    async def _plan(self, project: str, name: str) -> JoinPlan:
        prefix = f"projects/{project}/featureSets/"
        set_id, _, version = name.removeprefix(prefix).partition("/versions/")
        if not name.startswith(prefix) or not (version.isdigit() or not version):
            raise InvalidArchiveFeatureSet(
                f"Predictions name {name!r}, which is not a feature set of projects/{project}."
            )
        catalog = await self._catalogs(project)
        return plan_join(catalog, catalog.feature_set(set_id, int(version or 0)))


def _by_feature_set(logged: Iterable[pl.DataFrame]) -> Iterator[tuple[str, pl.DataFrame]]:
    for rows in logged:
        for name in rows.get_column(FEATURE_SET).unique().sort().to_list():
            yield name, rows.filter(pl.col(FEATURE_SET) == name)


def _applied_columns(plan: JoinPlan) -> dict[VersionRef, str]:
    return {v.view.ref: APPLIED_PREFIX + applied_name(v.view.ref) for v in plan.stored if v.source.is_stream}


def _logs_offsets(rows: pl.DataFrame, plan: JoinPlan) -> pl.Series:
    """True for the rows that have the applied offsets of all stream views of the feature set."""
    columns = list(_applied_columns(plan).values())
    if any(c not in rows.columns for c in columns):
        return pl.Series([False]).new_from_index(0, rows.height)
    return rows.select(
        pl.repeat(True, rows.height, dtype=pl.Boolean).and_(*(pl.col(c).is_not_null() for c in columns))
    ).to_series()


def _parts(
    rows: pl.DataFrame, plan: JoinPlan, exact: pl.Series
) -> Iterator[tuple[pl.DataFrame, dict[VersionRef, pl.Series]]]:
    """(rows to recompute together, applied offsets per stream view; empty if they are not logged)."""
    if exact.any():
        part = rows.filter(exact)
        lists = {ref: _offsets(part.get_column(c)) for ref, c in _applied_columns(plan).items()}
        yield part, lists
    if not exact.all():
        yield rows.filter(~exact), {}


def _offsets(logged: pl.Series) -> pl.Series:
    """Applied offsets as lists of INT64: partition, next offset, … Raises WrongArchive for anything else."""
    kind = logged.dtype
    if not isinstance(kind, pl.List | pl.Array) or not (_inner(kind).is_integer() or _inner(kind) == pl.Null):
        raise WrongArchive(f"The predictions store {logged.name!r} as {kind}, not as lists of offsets.")
    lists = logged.cast(pl.List(pl.Int64), strict=False)
    numbers = lists.list.explode(keep_nulls=True, empty_as_null=False)
    if (lists.list.len() % 2 == 1).any() or numbers.null_count() or (numbers < 0).any():
        raise WrongArchive(
            f"The predictions have a list in {logged.name!r} that is not partition, next offset, partition, …"
        )
    return lists


def _spine(rows: pl.DataFrame, plan: JoinPlan) -> pl.DataFrame:
    wanted = {f.name: ENTITY_PREFIX + f.name for f in plan.feature_set.join_keys}
    for request_field in plan.feature_set.request_fields:
        column = REQUEST_PREFIX + request_field.name
        if column in rows.columns or request_field.name not in wanted:
            wanted[request_field.name] = column
    missing = [column for column in wanted.values() if column not in rows.columns]
    if missing:
        raise WrongArchive(
            f"The predictions have no column {missing[0]!r}, which {plan.feature_set.name} needs."
        )
    return typed_spine(
        rows.select(pl.col(EVENT_TIME).cast(TIMESTAMP), *(pl.col(c).alias(n) for n, c in wanted.items())),
        plan,
    )


def _describe(rows: pl.DataFrame) -> pl.Series:
    """The id, time and keys of each row, for the examples of mismatches."""
    keys = [c for c in rows.columns if c.startswith(ENTITY_PREFIX)]
    parts = [pl.col(PREDICTION_ID), pl.lit(" at "), pl.col(EVENT_TIME).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")]
    for key in keys:
        parts += [
            pl.lit(f" {key.removeprefix(ENTITY_PREFIX)}="),
            pl.col(key).cast(pl.String).fill_null("null"),
        ]
    return rows.select(pl.concat_str(parts, ignore_nulls=True)).to_series()


def _compare(
    rows: pl.DataFrame,
    offline: pl.DataFrame,
    fields: Sequence[Field],
    described: pl.Series,
    totals: dict[str, FeatureSkew],
) -> None:
    for declared in fields:
        served, recomputed = rows.get_column(declared.name), offline.get_column(declared.name)
        if not comparable(served.dtype, recomputed.dtype):
            raise WrongArchive(
                f"The predictions store {declared.name!r} as {served.dtype}, but the feature is "
                f"{recomputed.dtype}."
            )
        unknown = _not_yet_valid(rows, declared.name)
        wrong = mismatched(served, recomputed) & ~unknown
        total = totals.setdefault(declared.name, FeatureSkew(declared.name))
        total.not_yet_valid += int(unknown.sum())
        total.compared += len(served) - int(unknown.sum())
        total.mismatches += int(wrong.sum())
        for index in wrong.arg_true()[: EXAMPLES - len(total.examples)].to_list():
            total.examples.append(
                f"{described[index]}: online {served[index]!r}, offline {recomputed[index]!r}"
            )


def comparable(served: pl.DataType, recomputed: pl.DataType) -> bool:
    """Whether `mismatched` compares columns of these types: lists, numbers and times, or text."""
    if pl.Null in (served, recomputed):
        return True
    if isinstance(served, pl.List | pl.Array) and isinstance(recomputed, pl.List | pl.Array):
        return comparable(_inner(served), _inner(recomputed))
    if isinstance(recomputed, pl.String | pl.Binary):
        return _is_number(served) or isinstance(served, pl.String | pl.Binary | pl.Categorical | pl.Enum)
    return _is_number(recomputed) and (_is_number(served) or isinstance(served, pl.String))


def _inner(stored: pl.List | pl.Array) -> pl.DataType:
    """The type of the elements of a list."""
    return stored.inner if isinstance(stored.inner, pl.DataType) else stored.inner()


def _is_number(stored: pl.DataType) -> bool:
    """Numbers, and what is compared as one."""
    return stored.is_numeric() or isinstance(stored, pl.Boolean | pl.Date | pl.Datetime)


def _not_yet_valid(rows: pl.DataFrame, feature: str) -> pl.Series:
    """True for the rows in which the feature was served with this status."""
    if NOT_YET_VALID not in rows.columns:
        return pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
    names = rows.get_column(NOT_YET_VALID).cast(pl.String).fill_null("").str.split(",")
    return names.list.contains(feature)


def mismatched(served: pl.Series, recomputed: pl.Series) -> pl.Series:
    """True where two columns differ: in nulls and NaN, by more than 1e-6 relative at float32, or as text.

    The types must be `comparable`.
    """
    if isinstance(recomputed.dtype, (pl.List, pl.Array)) or isinstance(served.dtype, (pl.List, pl.Array)):
        pairs = zip(served.to_list(), recomputed.to_list(), strict=True)
        return pl.Series([_lists_differ(a, b) for a, b in pairs], dtype=pl.Boolean)
    if served.dtype == pl.String or recomputed.dtype in (pl.String, pl.Binary):
        kind = pl.Binary if pl.Binary in (served.dtype, recomputed.dtype) else pl.String
        return _text(served, kind).ne_missing(_text(recomputed, kind))
    if isinstance(recomputed.dtype, pl.Datetime) and isinstance(served.dtype, pl.Datetime):
        return served.dt.epoch("us").ne_missing(recomputed.dt.epoch("us"))
    frame = pl.DataFrame({"a": _number(served), "b": _number(recomputed)})
    a, b = pl.col("a"), pl.col("b")
    close = (a - b).abs() <= pl.max_horizontal(a.abs(), b.abs()) * RELATIVE_TOLERANCE + ABSOLUTE_TOLERANCE
    both = a.is_not_null() & b.is_not_null()
    return frame.select(
        pl.when(both).then(~(close | (a == b))).otherwise(a.is_null() != b.is_null())
    ).to_series()


def _text(values: pl.Series, kind: type[pl.DataType]) -> pl.Series:
    """The values as text, or as the bytes of it: bytes need not be text."""
    return values if values.dtype == pl.Binary else values.cast(pl.String).cast(kind)


def _number(values: pl.Series) -> pl.Series:
    # Rounded to float32, as models see it; compared in float64, so that the comparison does not round.
    return values.cast(pl.Float32).cast(pl.Float64).fill_nan(None)


def _lists_differ(a: Sequence[object] | None, b: Sequence[object] | None) -> bool:
    if a is None or b is None:
        return (a is None) != (b is None)
    return len(a) != len(b) or bool(
        mismatched(pl.Series(list(a), strict=False), pl.Series(list(b), strict=False)).any()
    )
