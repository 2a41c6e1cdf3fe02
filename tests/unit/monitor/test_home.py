"""The home of ids is the partition that producers choose."""

from __future__ import annotations

import zlib

import pytest

from flywheel_common.ids import uuid7
from flywheel_common.kafka.topics import partition_for
from flywheel_monitor.store.postgres.home import NOWHERE, Home, hashes_of, home_of

UUIDS = [uuid7(1_364_774_400_000 + i, i * 7919) for i in range(200)]
IDS = {
    "uuids": UUIDS,
    "texts": [f"p{i}" for i in range(200)],
    "of 36 characters": [f"{i:035d}ü" for i in range(20)],
    "mixed": [*UUIDS, "p1", ""],
    "none": [],
}


@pytest.mark.parametrize("kind", IDS)
def test_hashes_are_those_of_producers(kind: str) -> None:
    assert [zlib.crc32(i.encode()) for i in IDS[kind]] == hashes_of(IDS[kind]).tolist()


@pytest.mark.parametrize("kind", ["uuids", "texts"])
def test_ids_are_at_home_in_the_partition_of_producers(kind: str) -> None:
    for partition in range(5):
        mine = [i for i in IDS[kind] if partition_for(i, 5) == partition]
        assert Home(partition, 5) == home_of(mine, partition, 5)
        assert Home(partition, NOWHERE) == home_of([*mine, IDS[kind][0], IDS[kind][1]], partition, 5) or (
            {partition} == {partition_for(i, 5) for i in IDS[kind][:2]}
        )
        assert Home(partition + 1, NOWHERE) == home_of(mine, partition + 1, 5)
