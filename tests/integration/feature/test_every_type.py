"""Values of every type, with nulls and empty lists, are served and joined as they were written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_protos.feature.v1 import training_set_pb2

T0 = datetime(2013, 3, 1, 12, tzinfo=UTC)
T1 = T0 + timedelta(days=400)
MICROS = int(T0.timestamp()) * 1_000_000
VALUES: dict[str, tuple[int, list[Any]]] = {
    "flag": (fw.BOOL, [True, False, None]),
    "whole": (fw.INT64, [2**53 + 1, -(2**63), None]),
    "single": (fw.FLOAT32, [0.5, -0.25, None]),
    "double": (fw.FLOAT64, [0.1, 1e100, None]),
    "text": (fw.STRING, ["ä", "", None]),
    "raw": (fw.BYTES, [b"\x00\xff", b"", None]),
    "moment": (fw.TIMESTAMP, [T0, T1, None]),
    "flags": (fw.BOOL_LIST, [[True, False], [], None]),
    "wholes": (fw.INT64_LIST, [[2**53 + 1, 0], [], None]),
    "singles": (fw.FLOAT32_LIST, [[0.5], [], None]),
    "doubles": (fw.FLOAT64_LIST, [[0.1, 0.2], [], None]),
    "texts": (fw.STRING_LIST, [["ä", ""], [], None]),
    "moments": (fw.TIMESTAMP_LIST, [[T0, T1], [], None]),
    "pair": (fw.vector(2), [[0.5, -0.5], [0.0, 0.0], None]),
    "triple": (fw.vector(3, fw.FLOAT64), [[0.1, 0.2, 0.3], [0.0, 0.0, 1.0], None]),
}
KEYS = ["A", "B", "C"]
SCHEMA = {"k": fw.STRING, "at": fw.TIMESTAMP, **{name: kind for name, (kind, _) in VALUES.items()}}
UTC_US = pl.Datetime("us", "UTC")
SCALARS: Mapping[str, Any] = {
    "flag": pl.Boolean,
    "whole": pl.Int64,
    "single": pl.Float32,
    "double": pl.Float64,
    "text": pl.String,
    "raw": pl.Binary,
    "moment": UTC_US,
}
FRAME_TYPES: Mapping[str, Any] = {
    "k": pl.String,
    "at": UTC_US,
    **SCALARS,
    **{f"{name}s": pl.List(kind) for name, kind in SCALARS.items() if name != "raw"},
    "pair": pl.Array(pl.Float32, 2),
    "triple": pl.Array(pl.Float64, 3),
}


def rows() -> dict[str, list[Any]]:
    return {"k": KEYS, "at": [T0] * 3, **{name: values for name, (_, values) in VALUES.items()}}


def plain(value: Any) -> Any:
    """A value with times as microseconds, as in responses."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    return round(value.timestamp() * 1e6) if isinstance(value, datetime) else value


async def apply(client: fw.Client, bucket: str) -> None:
    source = fw.ParquetSource("everything", SCHEMA, timestamp="at", uri=f"s3://{bucket}/everything/")
    thing = fw.Entity("thing", {"k": fw.STRING})
    view = fw.BatchView("all", thing, source, {name: kind for name, (kind, _) in VALUES.items()})
    both = fw.FeatureSet("everything", ["all:*"])
    answer = await client.apply(fw.compile_definitions([view, both], "default"))
    assert {c.action for c in answer.changes} == {1}


async def served(client: fw.Client) -> dict[str, list[Any]]:
    answer = await client.online_features("everything", {"k": KEYS}, as_of=T1)
    return {name.removeprefix("all__"): values for name, values in to_dict(answer.features).items()}


def expected() -> dict[str, list[Any]]:
    return {name: [plain(v) for v in values] for name, (_, values) in VALUES.items()}


async def test_pushed_values_of_every_type_are_served_unchanged(client: fw.Client, bucket: str) -> None:
    await apply(client, bucket)
    pushed = await client.push("views/all", rows(), SCHEMA)
    assert pushed.accepted_count == 3
    assert await served(client) == expected()


async def test_values_of_every_type_are_served_in_row_layout(client: fw.Client, bucket: str) -> None:
    await apply(client, bucket)
    await client.push("views/all", rows(), SCHEMA)
    answer = await client.online_features("everything", {"k": KEYS}, as_of=T1, readable=True)
    row = answer.rows[0].values
    assert row["all__raw"].bytes_value == b"\x00\xff" and row["all__text"].string_value == "ä"
    assert row["all__whole"].int64_value == 2**53 + 1
    assert [v.double_value for v in row["all__pair"].list_value.values] == [0.5, -0.5]
    assert row["all__moment"].timestamp_value.ToDatetime(UTC) == T0
    assert [v.timestamp_value.ToDatetime(UTC) for v in row["all__moments"].list_value.values] == [T0, T1]
    assert answer.rows[1].values["all__texts"].WhichOneof("kind") == "list_value"
    assert answer.rows[2].values["all__texts"].WhichOneof("kind") is None
    assert set(answer.rows[2].statuses.values()) == {2}


@pytest.mark.timeout(90)
async def test_stored_values_of_every_type_are_served_and_joined_unchanged(
    client: fw.Client, bucket: str, tables: S3Tables
) -> None:
    await apply(client, bucket)
    frame = pl.DataFrame(rows(), schema=FRAME_TYPES)
    spine = frame.select("k", (pl.col("at") + timedelta(hours=1)).alias("asked"))
    await asyncio.to_thread(tables.write, f"s3://{bucket}/everything/a.parquet", frame)
    await asyncio.to_thread(tables.write, f"s3://{bucket}/spine.parquet", spine)
    job = await client.materialize("all")
    assert job.progress.done == 3
    assert await served(client) == expected()
    built = await client.build_training_set(
        "everything",
        training_set_pb2.Spine(
            file=training_set_pb2.FileSpine(uri=f"s3://{bucket}/spine.parquet", timestamp_field="asked")
        ),
    )
    assert built.row_count == 3
    columns = ["k", *(f"all__{name}" for name in VALUES)]
    joined = (await asyncio.to_thread(tables.read, built.uri, columns)).sort("k")
    for name, (_, values) in VALUES.items():
        assert joined[f"all__{name}"].to_list() == [
            v.replace(tzinfo=UTC) if isinstance(v, datetime) else v for v in values
        ], name
        found = joined[f"all__{name}"].dtype
        assert found == FRAME_TYPES[name] or isinstance(found, pl.List), name


@pytest.mark.timeout(90)
async def test_streamed_values_of_every_type_are_aggregated_unchanged(
    client: fw.Client, workers: Any
) -> None:
    workers.start()
    source = fw.StreamSource("events", SCHEMA, timestamp="at")
    thing = fw.Entity("thing", {"k": fw.STRING})
    scalars = ["flag", "whole", "double", "text", "raw", "moment"]
    view = fw.StreamView(
        "recent",
        thing,
        source,
        [
            *(fw.last(name, "1d", name=name) for name in scalars),
            *(fw.approx_distinct(name, "1d", name=f"different_{name}") for name in scalars),
            *(fw.count("1d", name, name=f"n_{name}") for name in VALUES),
            fw.last_n("text", 3, "1d", name="newest_texts"),
            fw.last_n("moment", 3, "1d", name="newest_moments"),
            fw.last_n("whole", 3, "1d", name="newest_wholes"),
            fw.first("whole", "1d", name="first_whole"),
            fw.first("flag", "1d", name="first_flag"),
        ],
    )
    both = fw.FeatureSet("recent", ["recent:*"])
    await client.apply(fw.compile_definitions([view, both], "default"))
    sent = rows()
    sent["k"] = ["A"] * 3
    sent["at"] = [T0 + timedelta(minutes=i) for i in range(3)]
    pushed = await client.push("events", sent, SCHEMA, ids=["a", "b", "c"])
    await client.wait_applied(pushed.offsets, within=30)
    answer = await client.online_features("recent", {"k": ["A", "B"]}, as_of=T0 + timedelta(minutes=5))
    found = {k.removeprefix("recent__"): v for k, v in to_dict(answer.features).items()}
    assert {name: found[name] for name in scalars} == {
        "flag": [False, None],
        "whole": [-(2**63), None],
        "double": [1e100, None],
        "text": ["", None],
        "raw": [b"", None],
        "moment": [plain(T1), None],
    }
    assert {found[f"different_{name}"][0] for name in scalars} == {2}
    assert {found[f"n_{name}"][0] for name in VALUES} == {2}
    assert found["newest_texts"] == [["", "ä"], None]
    assert found["newest_moments"] == [[plain(T1), plain(T0)], None]
    assert found["first_flag"] == [True, None]
    assert found["newest_wholes"] == [[-(2**63), 2**53 + 1], None]
    assert found["first_whole"] == [2**53 + 1, None]
