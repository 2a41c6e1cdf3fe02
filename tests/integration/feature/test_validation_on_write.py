"""Validation rules on write: refused pushes, skipped rows of jobs, and readable quarantine files."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
SCHEMA = {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "seats": fw.FLOAT64, "maker": fw.STRING}
plane = fw.Entity("plane", {"tailnum": fw.STRING})
landings = fw.StreamSource(
    "landings",
    {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64},
    timestamp="at",
    rules={
        "delay": [fw.Rule(max=3000), fw.Rule(min=-100, action="quarantine"), fw.Rule(max=600, action="flag")]
    },
)
recent = fw.StreamView("recent", plane, landings, [fw.count("1h", name="n")])


def definitions(bucket: str) -> Any:
    source = fw.ParquetSource("planes", SCHEMA, timestamp="at", uri=f"s3://{bucket}/planes/")
    facts = fw.BatchView(
        "facts",
        plane,
        source,
        {"seats": fw.FLOAT64, "maker": fw.STRING},
        rules={
            "seats": [fw.Rule(min=1, max=900), fw.Rule(max_null_rate=0.5, action="quarantine")],
            "maker": [
                fw.Rule(allowed=["airbus", "boeing"], action="quarantine"),
                fw.Rule(allowed=["airbus"], action="flag"),
            ],
        },
    )
    served = fw.FeatureSet("served", ["facts:seats", "facts:maker"])
    return fw.compile_definitions([facts, recent, served], "default")


def rows(*planes: tuple[str, int, float | None, str | None]) -> dict[str, list[Any]]:
    return {
        "tailnum": [p[0] for p in planes],
        "at": [T0 + timedelta(minutes=p[1]) for p in planes],
        "seats": [p[2] for p in planes],
        "maker": [p[3] for p in planes],
    }


async def seats(client: fw.Client, *tailnums: str) -> list[Any]:
    answer = await client.online_features("served", {"tailnum": list(tailnums)}, as_of=T0 + timedelta(days=1))
    found: list[Any] = to_dict(answer.features)["facts__seats"]
    return found


async def test_a_rejected_row_refuses_the_push_and_is_named_in_the_error(
    client: fw.Client, bucket: str, tables: S3Tables
) -> None:
    await client.apply(definitions(bucket))
    bad = rows(("N1", 0, 100.0, "airbus"), ("N2", 0, 5.0, "tupolev"), ("N3", 0, 0.0, "airbus"))
    with pytest.raises(fw.FlywheelError) as raised:
        await client.push("views/facts", bad, SCHEMA)
    assert raised.value.reason == "VALIDATION_FAILED"
    named = {k: raised.value.metadata[k] for k in ("row", "feature", "rule")}
    assert named == {"row": "2", "feature": "seats", "rule": "min 1"}
    assert await seats(client, "N1", "N2", "N3") == [None, None, None]
    with pytest.raises(fw.NotFound):
        await asyncio.to_thread(tables.schema, f"s3://{bucket}/quarantine/default/facts/")


async def test_quarantined_rows_are_kept_with_reasons_and_flagged_rows_served(
    client: fw.Client, bucket: str, tables: S3Tables
) -> None:
    await client.apply(definitions(bucket))
    sent = rows(("N1", 0, 100.0, "airbus"), ("N2", 0, 5.0, "tupolev"), ("N3", 0, 7.0, "boeing"))
    for _ in range(2):
        answer = await client.push("views/facts", sent, SCHEMA)
    assert answer.accepted_count == 2
    assert (answer.validation.quarantined_count, answer.validation.flagged_count) == (1, 1)
    assert {(b.feature, b.rule, b.row_count) for b in answer.validation.breaches} == {
        ("maker", "allowed airbus, boeing", 1),
        ("maker", "allowed airbus", 2),
    }
    assert await seats(client, "N1", "N2", "N3") == [100.0, None, 7.0]
    quarantined = await asyncio.to_thread(
        tables.read, f"s3://{bucket}/quarantine/default/facts/", ["tailnum", "maker", "__broken"]
    )
    # The repeated push added no second file.
    assert quarantined.rows() == [
        ("N2", "tupolev", ["maker: allowed airbus, boeing", "maker: allowed airbus"])
    ]


@pytest.mark.timeout(60)
async def test_a_materialization_skips_and_counts_rows_that_break_rules(
    client: fw.Client, bucket: str, tables: S3Tables
) -> None:
    await client.apply(definitions(bucket))
    stored = rows(
        ("N1", 0, 100.0, "airbus"),
        ("N1", 9, -1.0, "airbus"),
        ("N2", 0, 5.0, "tupolev"),
        ("N3", 0, 7.0, "boeing"),
        ("N4", 0, None, "airbus"),
    )
    await asyncio.to_thread(tables.write, f"s3://{bucket}/planes/a.parquet", pl.DataFrame(stored))
    job = await client.materialize("facts")
    report = job.validation_report
    assert (report.rejected_count, report.quarantined_count, report.flagged_count) == (1, 1, 1)
    assert ("seats", "min 1", 1) in {(b.feature, b.rule, b.row_count) for b in report.breaches}
    # The newest row of N1 is skipped, so the row before it is served; one null in five is below the rate.
    assert await seats(client, "N1", "N2", "N3", "N4") == [100.0, None, 7.0, None]
    quarantined = await asyncio.to_thread(
        tables.read, f"s3://{bucket}/quarantine/default/facts/", ["tailnum"]
    )
    assert quarantined["tailnum"].to_list() == ["N2"]


async def test_too_many_nulls_in_one_write_break_max_null_rate(client: fw.Client, bucket: str) -> None:
    await client.apply(definitions(bucket))
    answer = await client.push(
        "views/facts",
        rows(("N1", 0, None, "airbus"), ("N2", 0, None, "airbus"), ("N3", 0, 9.0, "airbus")),
        SCHEMA,
    )
    assert (answer.accepted_count, answer.validation.quarantined_count) == (1, 2)
    assert await seats(client, "N3") == [9.0]


async def test_rules_of_a_stream_source_apply_to_pushed_events(
    client: fw.Client, bucket: str, tables: S3Tables
) -> None:
    await client.apply(definitions(bucket))

    def events(*delays: float) -> dict[str, Any]:
        return {
            "tailnum": ["N1"] * len(delays),
            "at": [T0 + timedelta(minutes=i) for i in range(len(delays))],
            "delay": list(delays),
        }

    with pytest.raises(fw.FlywheelError) as raised:
        await client.push("landings", events(5.0, 3001.0))
    assert (raised.value.reason, raised.value.metadata["row"]) == ("VALIDATION_FAILED", "1")
    answer = await client.push("landings", events(5.0, -101.0, 700.0), ids=["a", "b", "c"])
    assert answer.accepted_count == 2
    assert (answer.validation.quarantined_count, answer.validation.flagged_count) == (1, 1)
    # Only two events are in Kafka.
    assert sum(o.next_offset for o in answer.offsets) >= 1
    uri = f"s3://{bucket}/quarantine/default/source.landings/"
    quarantined = await asyncio.to_thread(tables.read, uri, ["delay", "__broken"])
    assert quarantined.rows() == [(-101.0, ["delay: min -100"])]


async def test_an_invalid_rule_is_a_violation_of_the_definition(client: fw.Client, bucket: str) -> None:
    wrong = definitions(bucket)
    wrong.views[0].batch.features[1].rules[0].min = 3.0
    wrong.views[0].batch.features[0].rules[0].max_null_rate = 7.0
    answer = await client.apply(wrong, plan=True)
    assert {(v.field, v.message) for v in answer.violations} == {
        ("batch.features[1].rules[0]", "min and max need a number type, not STRING"),
        ("batch.features[0].rules[0]", "max_null_rate must be at least 0 and below 1"),
    }
