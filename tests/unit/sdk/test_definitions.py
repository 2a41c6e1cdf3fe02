"""Compilation of Python definitions to protobuf."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.definitions import location_of_violation
from flywheel.errors import DefinitionError
from flywheel.types import duration
from flywheel_protos.feature.v1 import definitions_pb2 as pb

carrier = fw.Entity("carrier", {"carrier": fw.STRING})
arrivals = fw.StreamSource(
    "arrivals", {"carrier": fw.STRING, "landed_at": fw.TIMESTAMP, "delay": fw.FLOAT64}, timestamp="landed_at"
)
week = fw.StreamView(
    "week",
    carrier,
    arrivals,
    [fw.mean("delay", "7d"), fw.last_n("delay", 5, "1d", name="recent")],
    tile="1h",
    ttl="30d",
)


def test_a_view_is_compiled_with_its_entity_and_source() -> None:
    found = fw.compile_definitions([week], "shop")
    assert [e.name for e in found.entities] == ["projects/shop/entities/carrier"]
    assert [s.name for s in found.sources] == ["projects/shop/sources/arrivals"]
    assert [v.name for v in found.views] == ["projects/shop/views/week"]


def test_a_definition_is_compiled_once() -> None:
    other = fw.StreamView("other", carrier, arrivals, [fw.count("1d")])
    found = fw.compile_definitions([week, other, carrier, week], "shop")
    assert (len(found.entities), len(found.sources), len(found.views)) == (1, 1, 2)


def test_a_parquet_source_compiles_its_format() -> None:
    def compiled(**options: Any) -> pb.ParquetSource:
        source = fw.ParquetSource(
            "planes", {"at": fw.TIMESTAMP}, timestamp="at", uri="s3://b/planes/", **options
        )
        return fw.compile_definitions([source], "shop").sources[0].parquet

    assert compiled().format == pb.TABLE_FORMAT_PARQUET
    assert compiled(format="delta") == pb.ParquetSource(uri="s3://b/planes/", format=pb.TABLE_FORMAT_DELTA)
    columns = {"Order Amount": "order_amount", "Größe": "size"}
    assert dict(compiled(columns=columns).columns) == columns
    with pytest.raises(ValueError, match="one of parquet, delta"):
        compiled(format="iceberg")


def test_stream_views_compile_windows_functions_and_ttl() -> None:
    view = fw.compile_definitions([week], "shop").views[0]
    assert view.stream.aggregations[0].function == pb.AGGREGATION_FUNCTION_MEAN
    assert view.stream.aggregations[0].window.ToTimedelta() == timedelta(days=7)
    assert (view.stream.aggregations[1].name, view.stream.aggregations[1].limit) == ("recent", 5)
    assert view.stream.tile.ToTimedelta() == timedelta(hours=1)
    assert view.ttl.ToTimedelta() == timedelta(days=30)


def test_other_objects_are_ignored() -> None:
    assert fw.compile_definitions([1, "text", fw], "shop") == pb.Definitions()


@pytest.mark.parametrize("text", ["", "7", "d7", "1.5h", "7 d", "-1h", "1w"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="24h"):
        duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("24h", 86_400), ("7d", 604_800)])
def test_durations_have_units(text: str, seconds: int) -> None:
    assert duration(text) == timedelta(seconds=seconds)


def test_a_violation_is_located_in_the_source_file() -> None:
    source = fw.StreamSource("s", {"k": fw.STRING, "at": fw.TIMESTAMP, "x": fw.FLOAT64}, timestamp="at")
    entity = fw.Entity("e", {"k": fw.STRING})
    view = fw.StreamView(
        "v",
        entity,
        source,
        [
            fw.mean("x", "1h"),
            fw.total("x", "1h"),
        ],
    )
    first, second = (
        location_of_violation([view], "p", "projects/p/views/v", f"stream.aggregations[{i}].field")
        for i in (0, 1)
    )
    file, _, line = first.partition(":")
    assert file.endswith("test_definitions.py")
    assert second == f"{file}:{int(line) + 1}"
    whole = location_of_violation([view], "p", "projects/p/views/v", "entity")
    assert int(whole.rpartition(":")[2]) < int(line)
    assert location_of_violation([view], "p", "projects/p/sources/s", "schema[0]") != ""
    assert location_of_violation([view], "p", "projects/p/sources/other", "schema") == ""


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("import flywheel as fw\n\nfw.vector(0)\n", 3, "ValueError: a vector has 1 or more elements"),
        ("import flywheel as fw\nx = (\n", 2, "SyntaxError"),
        ("x = 1\ny = nothing\n", 2, "NameError"),
    ],
)
def test_an_error_in_a_definitions_file_names_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(DefinitionError) as raised:
        fw.load_module(file)
    assert f"broken.py:{line}: " in str(raised.value) and message in str(raised.value)


def test_a_compile_error_names_its_line() -> None:
    entity = fw.Entity("e", {"k": fw.STRING})
    table = fw.ParquetSource("t", {"k": fw.STRING, "at": fw.TIMESTAMP}, timestamp="at", uri="s3://bucket/t/")
    for wrong in (
        fw.BatchView("v", entity, table, {"x": fw.FLOAT64}, ttl="3 days"),
        fw.BatchView("v", entity, table, {"x": fw.FLOAT64}, rules={"x": fw.Rule(min=0, action="drop")}),
        fw.BatchView("v", entity, table, {"x": fw.FLOAT64}, rules={"y": fw.Rule(min=0)}),
    ):
        with pytest.raises(DefinitionError, match=r"test_definitions\.py:\d+: BatchView 'v': "):
            fw.compile_definitions([wrong], "p")


def test_batch_views_compile_rules_and_vectors() -> None:
    entity = fw.Entity("e", {"k": fw.STRING})
    table = fw.ParquetSource(
        "t", {"k": fw.STRING, "at": fw.TIMESTAMP, "v": fw.vector(3)}, timestamp="at", uri="s3://bucket/t/"
    )
    rule = fw.Rule(min=-1, max_null_rate=0.1, action="flag")
    found = fw.compile_definitions(
        [fw.BatchView("v", entity, table, {"v": fw.vector(3)}, rules={"v": rule})], "p"
    )
    assert found.sources[0].schema[2].vector_size == 3
    (feature,) = found.views[0].batch.features
    assert (feature.vector_size, feature.rules[0].min, feature.rules[0].action) == (
        3,
        -1.0,
        pb.VALIDATION_ACTION_FLAG,
    )
    assert not feature.rules[0].HasField("max")
