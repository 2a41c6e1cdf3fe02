"""One law for the way of predictions into the archive: each row once. In memory, in PostgreSQL and, for how far it is, through gRPC."""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from flywheel_common.errors import Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.storage.objects import Digest
from flywheel_monitor.archive import Archive, ArchiveSettings
from flywheel_monitor.gauges import Gauges

DAY_US = 86_400_000_000
NEVER = 1e9


class Fragile(MemoryObjectStore):
    """Fails at every put from the `lasts`-th on, as long as `lasts` is set."""

    lasts: int | None = None

    async def put(self, key: str, data: bytes) -> Digest:
        if self.lasts is not None:
            if self.lasts == 0:
                raise Unavailable("The object store is away.", reason="S3_UNAVAILABLE")
            self.lasts -= 1
        return await super().put(key, data)


def archive(monitor: Any, objects: MemoryObjectStore, **settings: Any) -> Archive:
    """Nothing is due but by its rows."""
    limits = {"idle_seconds": NEVER, "age_seconds": NEVER, **settings}
    return Archive(monitor.store, objects, ArchiveSettings("b", **limits), Gauges(CollectorRegistry()))


async def held(objects: MemoryObjectStore, prefix: str = "predictions/p/late/") -> dict[str, list[str]]:
    """Key → prediction ids."""
    found = {}
    async for info in objects.list(prefix):
        table = pq.read_table(io.BytesIO(await objects.get(info.key)))
        found[info.key.removeprefix(prefix)] = table["prediction_id"].to_pylist()
    return found


async def test_each_new_row_is_archived_once_by_day_and_version(monitor: Any) -> None:
    start, objects = monitor.start_us, MemoryObjectStore()
    assert (0, None) == await monitor.asks.archived()
    times = [start, start + DAY_US, start + 5]
    await monitor.predicted(monitor.batch(["a", "b", "c"], times=times))
    await monitor.predicted(monitor.batch(["c", "d", "a"], times=[start + 5, start + 9, start]))
    await monitor.predicted(monitor.batch(["a", "b"], times=times[:2]))
    shadow = monitor.batch(["a"], version=2, release=2, role=3, times=[start])
    await monitor.predicted(shadow, monitor.batch(["x"], model="projects/p/models/other"))
    assert 2 == await archive(monitor, objects).pass_once(now=True)
    found = {(key[5:15], key[-10:-8]): ids for key, ids in (await held(objects)).items()}
    assert {
        ("2013-04-01", "v1"): ["a", "c", "d"],
        ("2013-04-02", "v1"): ["b"],
        ("2013-04-01", "v2"): ["a"],
    } == found
    assert (5, start + DAY_US) == await monitor.asks.archived()
    assert (1, start) == await monitor.asks.archived("projects/p/models/other")
    assert (0, None) == await monitor.asks.archived("projects/q/models/late")
    assert 0 == await archive(monitor, objects).pass_once(now=True)


async def test_a_segment_is_cut_when_enough_rows_wait_and_takes_the_oldest(monitor: Any) -> None:
    objects = MemoryObjectStore()
    due = archive(monitor, objects, rows=4)
    await monitor.predicted(monitor.batch(["a", "b", "c"]))
    assert 0 == await due.pass_once()
    await monitor.predicted(monitor.batch(["d", "e"]), monitor.batch(["f"]))
    assert 1 == await due.pass_once()
    assert [["a", "b", "c", "d", "e"]] == list((await held(objects)).values())
    assert (5, monitor.start_us) == await monitor.asks.archived()
    assert 0 == await due.pass_once()
    assert 1 == await archive(monitor, objects, age_seconds=0).pass_once()
    assert [["a", "b", "c", "d", "e"], ["f"]] == sorted((await held(objects)).values())


@pytest.mark.parametrize("lasts", [0, 1, 2])
async def test_what_was_begun_is_repeated_under_the_same_names_and_counts_when_it_is_complete(
    monitor: Any, lasts: int
) -> None:
    objects, start = Fragile(), monitor.start_us
    times = [start, start + DAY_US, start + 2 * DAY_US]
    await monitor.predicted(monitor.batch(["a", "b", "c"], times=times))
    objects.lasts = lasts
    with pytest.raises(Unavailable):
        await archive(monitor, objects).pass_once(now=True)
    assert (lasts, (0, None)) == (len(await held(objects)), await monitor.asks.archived())
    await monitor.predicted(monitor.batch(["d"], times=[start]))
    objects.lasts = None
    assert 1 == await archive(monitor, objects).pass_once()
    assert [["a"], ["b"], ["c"]] == sorted((await held(objects)).values())
    assert (3, times[2]) == await monitor.asks.archived()
    assert 1 == await archive(monitor, objects).pass_once(now=True)
    assert (4, times[2]) == await monitor.asks.archived()


async def test_rows_whose_transaction_is_undone_never_reach_the_archive(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a"]))
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.add_predictions(0, [monitor.batch(["b"])])
            raise ZeroDivisionError
    await archive(monitor, MemoryObjectStore()).pass_once(now=True)
    assert (1, monitor.start_us) == await monitor.asks.archived()


@pytest.mark.without_grpc("a gauge, not an RPC, shows what waits for the archive")
async def test_what_waits_is_counted_per_model_with_its_ages(monitor: Any) -> None:
    other = "projects/p/models/other"
    await monitor.predicted(monitor.batch(["a", "b"]))
    await monitor.predicted(monitor.batch(["b", "c"]), monitor.batch(["x"], model=other))
    async with monitor.store.transaction() as records:
        found = {w.model: w for w in await records.waiting()}
        assert {monitor.model: 3, other: 1} == {model: w.rows for model, w in found.items()}
        assert 0 <= found[monitor.model].idle_seconds <= found[monitor.model].age_seconds < 60
        await records.cut_segment(monitor.model, 1)
        assert {monitor.model: 1, other: 1} == {w.model: w.rows for w in await records.waiting()}
