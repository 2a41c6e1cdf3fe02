"""Contract tests of the archive queue: each row is archived once."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from flywheel_common.columns import from_texts, to_table
from flywheel_common.errors import Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.storage.objects import Digest
from flywheel_monitor.archive.metrics import ArchiveMetrics
from flywheel_monitor.archive.prediction_archive import ArchiveSettings, PredictionArchive
from flywheel_monitor.ingest import decode
from flywheel_protos.events.v1.prediction_pb2 import PredictionBatch
from tests.support.builders.monitor import (
    MODEL,
    START_US,
    predictions,
)
from tests.support.servers.monitor import LocalMonitor

DAY_US = 86_400_000_000
NEVER = 1e9


class FailingObjectStore(MemoryObjectStore):
    """Fails every put after the first `puts_left` ones; None: never."""

    puts_left: int | None = None

    async def put(self, key: str, data: bytes) -> Digest:
        if self.puts_left is not None:
            if self.puts_left == 0:
                raise Unavailable("The object store is down.")
            self.puts_left -= 1
        return await super().put(key, data)


def archive(monitor: LocalMonitor, objects: MemoryObjectStore, **settings: Any) -> PredictionArchive:
    """An archive that cuts segments by their rows only, unless the settings say otherwise."""
    limits = {"idle_seconds": NEVER, "age_seconds": NEVER, **settings}
    metrics = ArchiveMetrics(CollectorRegistry())
    return PredictionArchive(monitor.store, objects, ArchiveSettings("b", **limits), metrics)


async def archived(monitor: LocalMonitor, model: str = MODEL) -> tuple[int, int | None]:
    async with monitor.store.reading() as records:
        return await records.archived(model)


async def held(objects: MemoryObjectStore, prefix: str = "predictions/p/late/") -> dict[str, list[str]]:
    """Key → prediction ids."""
    found = {}
    async for info in objects.list(prefix):
        table = pq.read_table(io.BytesIO(await objects.get(info.key)))
        found[info.key.removeprefix(prefix)] = table["prediction_id"].to_pylist()
    return found


async def test_each_new_row_is_archived_once_by_day_and_version(monitor: LocalMonitor) -> None:
    start, objects = START_US, MemoryObjectStore()
    assert (0, None) == await archived(monitor)
    times = [start, start + DAY_US, start + 5]
    await monitor.predicted(predictions(["a", "b", "c"], times=times))
    await monitor.predicted(predictions(["c", "d", "a"], times=[start + 5, start + 9, start]))
    await monitor.predicted(predictions(["a", "b"], times=times[:2]))
    shadow = predictions(["a"], version=2, release=2, role=3, times=[start])
    await monitor.predicted(shadow, predictions(["x"], model="projects/p/models/other"))
    assert 2 == await archive(monitor, objects).pass_once(now=True)
    found = {(key[5:15], key[-10:-8]): ids for key, ids in (await held(objects)).items()}
    assert {
        ("2013-04-01", "v1"): ["a", "c", "d"],
        ("2013-04-02", "v1"): ["b"],
        ("2013-04-01", "v2"): ["a"],
    } == found
    assert (5, start + DAY_US) == await archived(monitor)
    assert (1, start) == await archived(monitor, "projects/p/models/other")
    assert (0, None) == await archived(monitor, "projects/q/models/late")
    assert 0 == await archive(monitor, objects).pass_once(now=True)


async def test_rows_of_conflicting_types_go_to_the_dead_letter_folder(monitor: LocalMonitor) -> None:
    objects = MemoryObjectStore()
    text = predictions(["b"])
    batch = PredictionBatch.FromString(text.records[0].payload)
    batch.features.CopyFrom(to_table([from_texts("v__x", ["far"])]))
    await monitor.predicted(predictions(["a"]))
    await monitor.predicted(decode.prediction_columns(batch, batch.SerializeToString()))
    await monitor.predicted(predictions(["c"]))
    assert 1 == await archive(monitor, objects).pass_once(now=True)
    assert [["a", "c"]] == list((await held(objects)).values())
    assert [["b"]] == list((await held(objects, "predictions-dead-letter/p/late/")).values())
    assert (3, START_US) == await archived(monitor)


async def test_answers_of_several_values_are_archived(monitor: LocalMonitor) -> None:
    objects, values = MemoryObjectStore(), np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    rows = predictions(["a", "b"], values, kind=2, class_names=["x", "y", "z"], costs=[0.5, np.nan])
    await monitor.predicted(rows)
    await archive(monitor, objects).pass_once(now=True)
    (key,) = [info.key async for info in objects.list("predictions/p/late/")]
    table = pq.read_table(io.BytesIO(await objects.get(key)))
    assert values.tolist() == table["scores"].to_pylist()
    assert (["x", "z"], [0.5, 0.7]) == (table["class"].to_pylist(), table["score"].to_pylist())
    assert [0.5, None] == table["cost"].to_pylist()


async def test_features_that_were_not_yet_valid_are_archived(monitor: LocalMonitor) -> None:
    objects = MemoryObjectStore()
    await monitor.predicted(predictions(["a", "b"], not_yet_valid=["v__x", ""]), predictions(["c"]))
    await archive(monitor, objects).pass_once(now=True)
    (key,) = [info.key async for info in objects.list("predictions/p/late/")]
    table = pq.read_table(io.BytesIO(await objects.get(key)))
    assert {"a": "v__x", "b": "", "c": None} == dict(
        zip(table["prediction_id"].to_pylist(), table["not_yet_valid"].to_pylist(), strict=True)
    )


async def test_a_segment_takes_the_oldest_batches_once_enough_rows_wait(monitor: LocalMonitor) -> None:
    objects = MemoryObjectStore()
    due = archive(monitor, objects, rows=4)
    await monitor.predicted(predictions(["a", "b", "c"]))
    assert 0 == await due.pass_once()
    await monitor.predicted(predictions(["d", "e"]), predictions(["f"]))
    assert 1 == await due.pass_once()
    assert [["a", "b", "c", "d", "e"]] == list((await held(objects)).values())
    assert (5, START_US) == await archived(monitor)
    assert 0 == await due.pass_once()
    assert 1 == await archive(monitor, objects, age_seconds=0).pass_once()
    assert [["a", "b", "c", "d", "e"], ["f"]] == sorted((await held(objects)).values())


@pytest.mark.parametrize("puts", [0, 1, 2])
async def test_an_interrupted_segment_is_repeated_and_counts_once(monitor: LocalMonitor, puts: int) -> None:
    objects, start = FailingObjectStore(), START_US
    times = [start, start + DAY_US, start + 2 * DAY_US]
    await monitor.predicted(predictions(["a", "b", "c"], times=times))
    objects.puts_left = puts
    with pytest.raises(Unavailable):
        await archive(monitor, objects).pass_once(now=True)
    assert (puts, (0, None)) == (len(await held(objects)), await archived(monitor))
    await monitor.predicted(predictions(["d"], times=[start]))
    objects.puts_left = None
    assert 1 == await archive(monitor, objects).pass_once()
    assert [["a"], ["b"], ["c"]] == sorted((await held(objects)).values())
    assert (3, times[2]) == await archived(monitor)
    assert 1 == await archive(monitor, objects).pass_once(now=True)
    assert (4, times[2]) == await archived(monitor)


async def test_rolled_back_rows_are_never_archived(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"]))
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.add_predictions(0, [predictions(["b"])])
            raise ZeroDivisionError
    await archive(monitor, MemoryObjectStore()).pass_once(now=True)
    assert (1, START_US) == await archived(monitor)


async def test_waiting_rows_are_counted_per_model_with_their_ages(monitor: LocalMonitor) -> None:
    other = "projects/p/models/other"
    await monitor.predicted(predictions(["a", "b"]))
    await monitor.predicted(predictions(["b", "c"]), predictions(["x"], model=other))
    async with monitor.store.transaction() as records:
        found = {w.model: w for w in await records.waiting()}
        assert {MODEL: 3, other: 1} == {model: w.rows for model, w in found.items()}
        assert 0 <= found[MODEL].idle_seconds <= found[MODEL].age_seconds < 60
        await records.cut_segment(MODEL, 1)
        assert {MODEL: 1, other: 1} == {w.model: w.rows for w in await records.waiting()}
