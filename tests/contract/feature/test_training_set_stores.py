"""Contract tests for training set stores: memory and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flywheel_common.errors import AlreadyExists
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.fakes.training_sets import MemoryTrainingSets
from flywheel_feature.offline.model import (
    ColumnProfile,
    FileSpine,
    JoinMode,
    SourceSpine,
    TrainingSet,
)
from flywheel_feature.offline.ports import TrainingSets
from flywheel_feature.store.postgres.training_sets import PostgresTrainingSets

BUILT = TrainingSet(
    project="p",
    id="winter",
    feature_set="projects/p/featureSets/flights/versions/2",
    view_versions=("projects/p/views/weather/versions/1",),
    spine=SourceSpine("landings", "scheduled", "delay >= 15", 1, 2, 3, ("id",)),
    mode=JoinMode.POINT_IN_TIME,
    uri="s3://b/training-sets/p/winter/0123/",
    content_hash="0123",
    row_count=7,
    label_mean=0.25,
    min_time=1_356_998_400_000_000,
    max_time=1_356_998_400_000_001,
    schema=(Field("weather__wind", DataType.FLOAT64),),
    profile=(ColumnProfile("weather__wind", DataType.FLOAT64, 7, 1, 0.1, 0.2, -1.0, 1.0, (0.0,), (3, 3)),),
    unlabelled_count=2,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    build_seconds=1.5,
    extra_columns=("id",),
)


@pytest.fixture
def sets(backing: str, request: pytest.FixtureRequest) -> TrainingSets:
    if backing == "memory":
        return MemoryTrainingSets()
    return PostgresTrainingSets(request.getfixturevalue("pool"))


async def test_created_sets_read_back(sets: TrainingSets) -> None:
    from_file = replace(
        BUILT, id="file", spine=FileSpine("s3://b/k.parquet", "t", "", ("notes",)), mode=JoinMode.NAIVE_LATEST
    )
    at_one_time = replace(
        BUILT, id="now", spine=FileSpine("s3://b/k.parquet", "", as_of=1_700_000_000_123_456)
    )
    await sets.create(BUILT)
    await sets.create(from_file)
    await sets.create(at_one_time)
    assert at_one_time == await sets.get("p", "now")
    assert BUILT == await sets.get("p", "winter")
    assert from_file == await sets.get("p", "file")
    assert await sets.get("q", "winter") is None
    assert await sets.get("p", "summer") is None


async def test_concurrent_creates_of_a_name_succeed_once(sets: TrainingSets) -> None:
    answers = await asyncio.gather(
        *(sets.create(replace(BUILT, row_count=n)) for n in range(10)), return_exceptions=True
    )
    assert 9 == sum(isinstance(a, AlreadyExists) and a.reason == "TRAINING_SET_EXISTS" for a in answers)
    winner = next(n for n, a in enumerate(answers) if a is None)
    stored = await sets.get("p", "winter")
    assert stored is not None
    assert winner == stored.row_count


async def test_sets_are_listed_newest_first_with_pages(sets: TrainingSets) -> None:
    for n in range(5):
        created = BUILT.created_at + timedelta(seconds=n // 2)
        version = f"projects/p/featureSets/{'flights' if n % 2 else 'flights2'}/versions/{n + 1}"
        await sets.create(replace(BUILT, id=f"s{n}", created_at=created, feature_set=version))
    first = await sets.list("p", limit=2)
    second = await sets.list("p", before=(first[-1].created_at, first[-1].id), limit=10)
    assert ["s4", "s3", "s2", "s1", "s0"] == [s.id for s in (*first, *second)]
    assert ["s3", "s1"] == [s.id for s in await sets.list("p", feature_set="projects/p/featureSets/flights")]
    assert ["s1"] == [
        s.id for s in await sets.list("p", feature_set="projects/p/featureSets/flights/versions/2")
    ]
    assert [] == await sets.list("q")


async def test_sets_are_found_by_a_part_of_their_id(sets: TrainingSets) -> None:
    for name in ("winter-a", "winter-b", "summer"):
        await sets.create(replace(BUILT, id=name))
    assert ["winter-b", "winter-a"] == [s.id for s in await sets.list("p", text="INTER")]
