"""Extra columns of spines: which are kept as which type, and which are refused."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_common.clock import SystemClock
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    BatchView,
    DataType,
    Entity,
    Feature,
    FeatureSet,
    Field,
    ParquetSource,
    Source,
    VersionRef,
    View,
)
from flywheel_feature.fakes.archive import MemoryArchive
from flywheel_feature.fakes.partitions import MemoryPartitions
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import Compute, FileSpine, SourceSpine, TrainingSet, TrainingSetRequest
from flywheel_feature.offline.partitioned.build import RAY, JoinLimits
from flywheel_feature.offline.partitioned.spec import Kind, PartitionSpec
from tests.support.builders.feature_units import UTC_MICROSECONDS, at, microseconds
from tests.support.builders.jobs import RecordingJob

D = DataType
SPINE = FileSpine("s3://inputs/spine/", "t", "y")
BASE = {"k": ["b", "a"], "t": [at(2), at(1)], "y": [1, 0]}


def catalog() -> Catalog:
    fields = (
        Field("k", D.STRING),
        Field("t", D.TIMESTAMP),
        Field("v", D.FLOAT64),
        Field("id", D.INT64),
        Field("words", D.STRING_LIST),
        Field("label", D.INT64),
    )
    feature = Feature("v", D.FLOAT64, field="v")
    view = View("p", "view", "key", BatchView("rows", (feature,)), version=1, features=(feature,))
    wanted = FeatureSet(
        "p",
        "set",
        ("view:v",),
        version=1,
        views=(view.ref,),
        schema=(Field("view__v", D.FLOAT64),),
        join_keys=fields[:1],
    )
    return Catalog(
        "p",
        entities={"key": Entity("p", "key", fields[:1])},
        sources={"rows": Source("p", "rows", fields, "t", "", ParquetSource("s3://inputs/rows/"))},
        views={view.ref: view},
        feature_sets={VersionRef("set", 1): wanted},
        latest_views={"view": view},
        latest_feature_sets={"set": wanted},
    )


ROWS = pl.DataFrame(
    [
        ("a", at(1), 2.5, 7, ["x"], 0),
        ("b", at(1), 1.5, 8, None, 1),
        ("a", at(1), 2.5, 5, [], 0),
        ("a", at(0), 0.5, 9, ["y", "z"], 1),
    ],
    schema={
        "k": pl.String,
        "t": UTC_MICROSECONDS,
        "v": pl.Float64,
        "id": pl.Int64,
        "words": pl.List(pl.String),
        "label": pl.Int64,
    },
    orient="row",
)


class Inputs:
    """The table of the source, the files of spines, and builders over them."""

    def __init__(self, *files: pl.DataFrame) -> None:
        self.tables = MemoryTables()
        self.tables.write("s3://inputs/rows/0.parquet", ROWS)
        for i, rows in enumerate(files):
            self.tables.write(f"s3://inputs/spine/{i}.parquet", rows)

    async def catalogs(self, _: str) -> Catalog:
        return catalog()

    def builder(self) -> TrainingSetBuilder:
        return TrainingSetBuilder(
            catalogs=self.catalogs,
            tables=self.tables,
            archive=MemoryArchive(),
            training_sets=MemoryTrainingSets(),
            clock=SystemClock(),
            engines=[MemoryPartitions(self.tables, RAY)],
            limits=JoinLimits(),
        )

    def build(
        self, spine: FileSpine | SourceSpine = SPINE, **changes: Any
    ) -> tuple[TrainingSet, pl.DataFrame]:
        """The training set, which both ways of joining give, and its rows."""
        wanted = replace(TrainingSetRequest("p", "one", "set", 0, spine), **changes)
        asyncio.run(self.builder().validate(wanted))
        whole = asyncio.run(self.builder().build(wanted, RecordingJob()))
        columns = [f.name for f in whole.schema]
        rows = self.tables.read(whole.uri, columns)
        on_ray = replace(wanted, compute=Compute.RAY)
        parts = asyncio.run(self.builder().build(on_ray, RecordingJob()))
        assert whole.content_hash == parts.content_hash
        assert whole.schema == parts.schema
        assert rows.equals(self.tables.read(parts.uri, columns))
        return whole, rows

    def refusal(self, spine: FileSpine | SourceSpine = SPINE, **changes: Any) -> FlywheelError:
        """The error by which a request is refused before the build."""
        with pytest.raises(InvalidArgument) as refused:
            asyncio.run(
                self.builder().validate(replace(TrainingSetRequest("p", "one", "set", 0, spine), **changes))
            )
        return refused.value


def spine(**extra: Any) -> pl.DataFrame:
    return pl.DataFrame({**BASE, **extra}, schema_overrides={"t": UTC_MICROSECONDS})


MOMENT = datetime(2024, 2, 29, 12, 30, 15, 123456, UTC)


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        (pl.Series([True, None]), D.BOOL, [True, None]),
        (pl.Series([-1, None], dtype=pl.Int8), D.INT64, [-1, None]),
        (pl.Series([2**63 - 1, 0], dtype=pl.UInt64), D.INT64, [2**63 - 1, 0]),
        (pl.Series([0.1, None], dtype=pl.Float32), D.FLOAT32, [0.10000000149011612, None]),
        (pl.Series([0.1, float("nan")]), D.FLOAT64, [0.1, None]),
        (pl.Series([Decimal("12.99"), None], dtype=pl.Decimal(10, 2)), D.FLOAT64, [12.99, None]),
        (pl.Series([Decimal(12), None], dtype=pl.Decimal(38, 0)), D.INT64, [12, None]),
        (pl.Series(["ä", None]), D.STRING, ["ä", None]),
        (pl.Series(["x", None], dtype=pl.Categorical), D.STRING, ["x", None]),
        (pl.Series([b"\x00", None]), D.BYTES, [b"\x00", None]),
        (pl.Series([MOMENT.replace(tzinfo=None), None]), D.TIMESTAMP, [MOMENT, None]),
        (pl.Series([date(2024, 2, 29), None]), D.TIMESTAMP, [datetime(2024, 2, 29, tzinfo=UTC), None]),
        (pl.Series([["a"], None]), D.STRING_LIST, [["a"], None]),
        (pl.Series([[1], []], dtype=pl.List(pl.Int16)), D.INT64_LIST, [[1], []]),
        (pl.Series([[1.5, 2.0], None], dtype=pl.Array(pl.Float64, 2)), D.FLOAT64_VECTOR, [[1.5, 2.0], None]),
        (pl.Series([None, None]), D.INT64, [None, None]),
    ],
    ids=lambda v: str(v.dtype) if isinstance(v, pl.Series) else "",
)
def test_an_extra_column_has_the_type_of_the_conversion_table(
    values: pl.Series, kind: DataType, kept: list[Any]
) -> None:
    built, rows = Inputs(spine(extra=values)).build()
    assert ["k", "event_timestamp", "extra", "view__v", "label"] == rows.columns
    assert kind == built.schema[2].data_type
    assert kept == rows["extra"].to_list()
    assert ("extra",) == built.extra_columns
    assert ["view__v", "label"] == [p.name for p in built.profile]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([{"a": 1}, None]),
        pl.Series([time(1), None]),
        pl.Series([timedelta(1), None]),
        pl.Series([[[1]], None]),
        pl.Series([1, None], dtype=pl.Int128),
        pl.Series([["a", "b"], None], dtype=pl.Array(pl.String, 2)),
    ],
    ids=lambda v: str(v.dtype),
)
def test_a_column_that_no_type_stores_is_refused_unless_it_is_ignored(values: pl.Series) -> None:
    inputs = Inputs(spine(odd=values, id=[1, 2]))
    refused = inputs.refusal()
    assert ("WRONG_SPINE", "odd") == (refused.reason, refused.metadata["field"])
    assert "ignored_columns" in refused.message
    built, rows = inputs.build(replace(SPINE, ignored_columns=("odd",)))
    assert ("id",) == built.extra_columns
    assert [1, 2] == rows["id"].to_list()


@pytest.mark.parametrize(
    ("name", "short"), [("view__v", False), ("v", True), ("label", False), ("event_timestamp", False)]
)
def test_an_extra_column_with_the_name_of_another_is_refused(name: str, short: bool) -> None:
    inputs = Inputs(spine(**{name: [1.0, 2.0]}))
    refused = inputs.refusal(short_feature_names=short)
    assert ("DUPLICATE_COLUMN", name) == (refused.reason, refused.metadata["field"])
    built, _ = inputs.build(replace(SPINE, ignored_columns=(name,)), short_feature_names=short)
    assert () == built.extra_columns


def test_a_value_that_does_not_fit_fails_the_build_with_column_and_row() -> None:
    inputs = Inputs(spine(big=pl.Series([1, 2**63], dtype=pl.UInt64)))
    with pytest.raises(InvalidArgument, match=r"'big', row 1: 9223372036854775808") as wrong:
        inputs.build()
    assert "WRONG_SPINE" == wrong.value.reason


def test_columns_of_files_with_other_types_or_without_them_are_kept() -> None:
    first = spine(id=pl.Series([1, 2], dtype=pl.Int64), weight=[0.5, 2.0], n=[1, None], x=[None, None])
    second = spine(
        id=pl.Series([3, 4], dtype=pl.Int16),
        n=[0.1, 2.0],
        x=["a", None],
        late=pl.Series([0.1, 1], dtype=pl.Float32),
    )
    for files in ([first, second], [second, first]):
        built, rows = Inputs(*files).build()
        kinds = {f.name: f.data_type for f in built.schema if f.name in built.extra_columns}
        assert {"id": D.INT64, "weight": D.FLOAT64, "n": D.FLOAT64, "x": D.STRING, "late": D.FLOAT32} == kinds
        by_id = rows.sort("id").select("id", "weight", "n", "x", "late").rows()
        tenth = float(np.float32(0.1))
        assert [
            (1, 0.5, 1.0, None, None),
            (2, 2.0, None, None, None),
            (3, None, 0.1, "a", tenth),
            (4, None, 2.0, None, 1.0),
        ] == by_id


def test_a_column_stored_as_text_and_numbers_is_refused_unless_it_is_ignored() -> None:
    inputs = Inputs(spine(id=[1, 2]), spine(id=["1", "2"]))
    refused = inputs.refusal()
    assert ("WRONG_SPINE", "id") == (refused.reason, refused.metadata["field"])
    assert () == inputs.build(replace(SPINE, ignored_columns=("id",)))[0].extra_columns


def test_a_folder_column_of_a_spine_is_kept_as_text() -> None:
    inputs = Inputs()
    inputs.tables.write("s3://inputs/spine/store=01/a.parquet", spine())
    assert ["01", "01"] == inputs.build()[1]["store"].to_list()


def test_ignored_columns_that_do_not_exist_are_refused() -> None:
    refused = Inputs(spine()).refusal(replace(SPINE, ignored_columns=("wieght",)))
    assert ("WRONG_SPINE", "wieght") == (refused.reason, refused.metadata["field"])


def history(*extra_fields: str) -> SourceSpine:
    start, end = (int(n) for n in microseconds([0, 60]))
    return SourceSpine("rows", "t", "v > 1", start, end, extra_fields=extra_fields)


def test_named_fields_of_a_source_become_extra_columns_in_sorted_order() -> None:
    built, rows = Inputs().build(history("id", "words"))
    assert ("id", "words") == built.extra_columns
    assert [
        ("a", at(0), 9, ["y", "z"], 0.5, 0.0),
        ("a", at(1), 5, [], 2.5, 1.0),
        ("a", at(1), 7, ["x"], 2.5, 1.0),
        ("b", at(1), 8, None, 1.5, 1.0),
    ] == rows.rows()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("wieght",), "UNKNOWN_FIELD"),
        (("k",), "DUPLICATE_COLUMN"),
        (("label",), "DUPLICATE_COLUMN"),
        (("id", "id"), "DUPLICATE_COLUMN"),
    ],
)
def test_unusable_extra_fields_of_a_source_are_refused(fields: tuple[str, ...], reason: str) -> None:
    refused = Inputs().refusal(history(*fields))
    assert (reason, fields[0]) == (refused.reason, refused.metadata["field"])


spine_rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", None]),
        st.integers(0, 3),
        st.sampled_from([0.0, 1.0, None]),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, "", "text"]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(spine_rows, st.integers(1, 4))
def test_rows_keep_the_order_of_the_spine(rows: list[tuple[Any, ...]], files: int) -> None:
    names = {"k": pl.String, "t": UTC_MICROSECONDS, "y": pl.Float64, "n": pl.Int64, "note": pl.String}
    whole = pl.DataFrame([(r[0], at(r[1]), *r[2:]) for r in rows], schema=names, orient="row")
    size = -(-len(rows) // files)
    inputs = Inputs(*(whole.slice(start, size) for start in range(0, len(rows), size)))
    built, answered = inputs.build()
    expected = [(k, at(t), n, note, y) for k, t, y, n, note in rows if y is not None]
    assert expected == answered.drop("view__v").rows()
    assert len(rows) - len(expected) == built.unlabelled_count


def test_a_join_that_an_older_version_started_sorts_its_rows() -> None:
    known = catalog()
    wanted = PartitionSpec(
        request=TrainingSetRequest("p", "one", "set", 0, SPINE),
        feature_set=known.feature_set("set", 0),
        entities=tuple(known.entities.values()),
        sources=tuple(known.sources.values()),
        views=tuple(known.views.values()),
        spine=((),),
        histories=(),
        rows_per_range=10,
        uri="s3://memory/parts/",
        extras=(Field("id", D.INT64),),
        keeps_order=True,
    )
    assert wanted == PartitionSpec.from_json(wanted.to_json())
    assert (Kind.CHUNK, ("id",)) == (wanted.ordered, tuple(f.name for f in wanted.plan().extras))
    older = json.loads(wanted.to_json())
    del older["extras"], older["keeps_order"]
    read = PartitionSpec.from_json(json.dumps(older).encode())
    assert (Kind.RANGE, ()) == (read.ordered, read.plan().extras)
