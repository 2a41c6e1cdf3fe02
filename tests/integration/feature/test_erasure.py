"""An erased entity is removed everywhere and stays removed; other entities are unchanged."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import polars as pl
import pyarrow.fs as fs
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.redis import Redis
from flywheel_local.s3 import S3
from tests.support.servers.feature import events_archived, s3_files

T0 = datetime(2013, 1, 1, tzinfo=UTC)
VISIT = {"person": fw.STRING, "shop": fw.INT64, "at": fw.TIMESTAMP, "spent": fw.FLOAT64}
FACT = {"person": fw.STRING, "at": fw.TIMESTAMP, "age": fw.INT64}
PEOPLE = ["anna", "bert", "carl"]
person = fw.Entity("person", {"person": fw.STRING})
shop = fw.Entity("shop", {"shop": fw.INT64})
visits = fw.StreamSource("visits", VISIT, timestamp="at")
pytestmark = pytest.mark.timeout(120)


def definitions(bucket: str, window: str = "7d") -> Any:
    people = fw.ParquetSource("people", FACT, timestamp="at", uri=f"s3://{bucket}/people/")
    facts = fw.BatchView("facts", person, people, {"age": fw.INT64})
    spent = fw.StreamView("spent", person, visits, [fw.count(window, name="n")], tile="1h")
    sales = fw.StreamView("sales", shop, visits, [fw.count("7d", name="n")], tile="1h")
    everything = fw.FeatureSet("all", ["spent:n", "facts:age"])
    return fw.compile_definitions([facts, spent, sales, everything], "default")


async def push(client: fw.Client, ids: list[str], *rows: tuple[str, int, float]) -> None:
    columns = {
        "person": [r[0] for r in rows],
        "shop": [r[1] for r in rows],
        "at": [T0 + timedelta(minutes=i) for i in range(len(rows))],
        "spent": [r[2] for r in rows],
    }
    await client.wait_applied((await client.push("visits", columns, VISIT, ids=ids)).offsets, within=30)


async def values(client: fw.Client) -> dict[str, list[Any]]:
    answer = await client.online_features("all", {"person": PEOPLE}, as_of=T0 + timedelta(days=1))
    return to_dict(answer.features)


def objects_on_s3(s3: S3, bucket: str) -> dict[str, bytes]:
    """The content of every object of a bucket."""
    files = s3_files(s3)
    found = files.get_file_info(fs.FileSelector(bucket, recursive=True))
    objects = {}
    for info in found:
        # An empty folder is still listed for a while.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            objects[info.path] = files.open_input_file(info.path).read()
    return objects


async def test_an_erased_entity_is_removed_everywhere_and_stays_removed(
    client: fw.Client,
    workers: Any,
    bucket: str,
    tables: S3Tables,
    s3: S3,
    redis: Redis,
    environment: dict[str, str],
) -> None:
    table = pl.DataFrame({"person": PEOPLE, "at": [T0] * 3, "age": [31, 32, 33]})
    tables.write(f"s3://{bucket}/people/a.parquet", table)
    names = ["anna", "bert"]
    logged = pl.DataFrame(
        {"prediction_id": ["p1", "p2"], "entity__person": names, "subject": names, "score": [0.1, 0.2]}
    )
    log = f"s3://{bucket}/predictions/default/late/date=2013-01-01/segment-1-v1.parquet"
    tables.write(log, logged)
    quarantine = f"s3://{bucket}/quarantine/default/facts/1.parquet"
    tables.write(quarantine, table.with_columns(__broken=pl.lit("age: max")))
    # A second version of the view; the tiles of the first version remain.
    await client.apply(definitions(bucket, "3d"))
    worker = workers.start()
    await push(client, ["1", "2", "3"], ("anna", 7, 1.0), ("bert", 7, 2.0), ("anna", 8, 3.0))
    await client.apply(definitions(bucket))
    await push(client, ["4", "5"], ("anna", 7, 4.0), ("carl", 8, 5.0))
    await client.materialize("facts")
    pushed = {"person": ["anna", "carl"], "at": [T0 + timedelta(hours=1)] * 2, "age": [41, 43]}
    await client.push("views/facts", pushed, FACT)
    await events_archived(client, 5)
    assert await values(client) == {"spent__n": [3, 1, 1], "facts__age": [41, 32, 43]}

    report = await client.erase_entity("person", {"person": "anna"})
    assert report.entity == "projects/default/entities/person"
    counts = (report.online_keys, report.archived_events, report.pushed_rows, report.predictions)
    assert counts == (3, 3, 1, 1)
    assert await values(client) == {"spent__n": [None, 1, 1], "facts__age": [None, 32, 43]}
    assert any("people" in s and "owner" in s for s in report.not_erased)
    assert any("Kafka topic" in s for s in report.not_erased)
    assert any("views/sales" in s for s in report.not_erased)
    objects = objects_on_s3(s3, bucket)
    assert [path for path, data in objects.items() if b"anna" in data] == [f"{bucket}/people/a.parquet"]
    assert report.quarantined_rows == 1
    assert tables.read(quarantine, ["person"]).get_column("person").to_list() == ["bert", "carl"]
    left = tables.read(log, ["prediction_id", "entity__person", "subject", "score"])
    assert left.rows() == [("p2", "bert", "bert", 0.2)]
    connection = await asyncpg.connect(environment["FLYWHEEL_FEATURE_POSTGRES_DSN"])
    table_names = [
        r["tablename"]
        for r in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    ]
    for name in table_names:
        rows = await connection.fetch(f'SELECT t::text AS row FROM "{name}" AS t')
        assert not [r for r in rows if "anna" in r["row"] or b"anna".hex() in r["row"]], name
    await connection.close()

    # A second erasure finds nothing.
    again = await client.erase_entity("person", {"person": "anna"})
    assert (again.online_keys, again.archived_events, again.pushed_rows, again.predictions) == (0, 0, 0, 0)
    # Kafka and the source table still have the rows; reading them again does not restore the entity.
    await asyncio.to_thread(workers.kill, worker)
    connection = await asyncpg.connect(environment["FLYWHEEL_FEATURE_POSTGRES_DSN"])
    await connection.execute("DELETE FROM archive_segment; DELETE FROM archive_position")
    await connection.close()
    redis.flush()
    workers.start()
    await events_archived(client, 2)
    await client.rebuild_online_store()
    assert await values(client) == {"spent__n": [None, 1, 1], "facts__age": [None, 32, 43]}
    # New rows of the entity are accepted again.
    await push(client, ["6"], ("anna", 7, 6.0))
    await client.push("views/facts", {"person": ["anna"], "at": [T0], "age": [44]}, FACT)
    assert await values(client) == {"spent__n": [1, 1, 1], "facts__age": [44, 32, 43]}


async def test_invalid_erasures_are_refused_with_documented_reasons(client: fw.Client, bucket: str) -> None:
    await client.apply(definitions(bucket))
    for entity, keys, kind, reason in (
        ("ghost", {"person": "anna"}, NotFound, "UNKNOWN_ENTITY"),
        ("person", {}, InvalidArgument, "MISSING_JOIN_KEY"),
        ("person", {"person": "anna", "shop": 7}, InvalidArgument, "UNKNOWN_FIELD"),
        ("person", {"person": 7}, InvalidArgument, "WRONG_TYPE"),
    ):
        with pytest.raises(kind) as raised:
            await client.erase_entity(entity, keys)
        assert raised.value.reason == reason
