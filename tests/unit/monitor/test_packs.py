"""Packs of predictions, and the buckets of their ids."""

from __future__ import annotations

import uuid
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.store.postgres.id_buckets import buckets_of
from flywheel_monitor.store.postgres.packs import COLUMNS, PACK_ROWS, Pack, packs_of, slice_us
from tests.support.builders.monitor import MINUTE_US, START_US, predictions


def read(batch: PredictionColumns, new: Any = None, width_us: int = MINUTE_US) -> list[Pack]:
    mask = np.ones(len(batch.ids), np.bool_) if new is None else np.array(new)
    found = packs_of(batch, mask, buckets_of(batch.ids), width_us)
    shared = {"variant_id": 7, "shadow": False, "arrived_at": None}
    return [Pack(shared | dict(zip(COLUMNS, p, strict=True))) for p in found]


@pytest.mark.parametrize("texts", [("a", "b", "c"), ("a", "bb", "ü€"), ("", "", ""), ("", "x", "")])
@pytest.mark.parametrize("costs", [(), (0.5, np.nan, 2.0)])
def test_a_pack_has_the_values_of_its_rows(texts: tuple[str, ...], costs: tuple[float, ...]) -> None:
    batch = predictions(
        ["id-1", "id-22", "é"],
        [0.25, np.nan, 0.75],
        times=[START_US, START_US + 1, START_US + 2],
        segments=texts,
        subjects=texts[::-1],
        sources=[1, 4, 2],
        costs=costs,
    )
    (pack,) = read(batch)
    assert batch.ids == pack.ids
    assert [START_US, START_US + 1, START_US + 2] == pack.event_times.tolist()
    np.testing.assert_array_equal([0.25, np.nan, 0.75], pack.scores)
    assert [1, 4, 2] == pack.sources.tolist()
    assert batch.decisions.tolist() == pack.decisions.tolist()
    assert [False, True, False] == pack.failed.tolist()
    assert [3.0] * 3 == pack.latencies_ms.tolist()
    np.testing.assert_array_equal(costs or [np.nan] * 3, pack.costs)
    assert (list(texts), list(texts[::-1])) == (pack.segments, pack.subjects)
    assert pack.outputs is None
    assert [START_US + 2, START_US + 1, START_US] == pack.row["newest_us"]
    last = pack.prediction(2)
    assert ("é", 7, False, texts[0], texts[2]) == (
        last.id,
        last.variant_id,
        last.shadow,
        last.subject,
        last.answer.segment,
    )
    assert (START_US + 2, 0.75, 2, True) == (
        last.answer.event_time,
        last.answer.score,
        last.answer.source,
        last.answer.decision,
    )


def test_classes_keep_their_outputs() -> None:
    scores = np.array([[0.2, 0.8], [0.6, 0.4]])
    (pack,) = read(predictions(["a", "b"], scores, kind=2, class_names=["x", "y"]))
    assert scores.tolist() == np.array(pack.outputs).tolist()
    assert [0.6, 0.4] == np.array(pack.prediction(1).answer.outputs).tolist()


def test_packs_have_new_rows_of_one_slice_in_order_of_time() -> None:
    at = [MINUTE_US, 5, 3, MINUTE_US - 1, 0]
    batch = predictions(list("abcde"), times=[START_US // MINUTE_US * MINUTE_US + t for t in at])
    found = read(batch, [True, True, True, True, False])
    assert [["c", "b", "d"], ["a"]] == [p.ids for p in found]
    ids = [str(i) for i in range(PACK_ROWS + 1)]
    many = read(predictions(ids, times=[START_US] * len(ids)))
    assert [PACK_ROWS, 1] == [p.row["rows"] for p in many]


@pytest.mark.parametrize(("pane_s", "expected_s"), [(60, 60), (3600, 60), (90, 30), (7, 1)])
def test_slices_divide_panes_and_minutes(pane_s: int, expected_s: int) -> None:
    assert expected_s * 1_000_000 == slice_us(pane_s * 1_000_000)


def test_buckets_of_ids_follow_their_kind() -> None:
    timed = "018bcfe5-6880-7abc-8def-0123456789ab"
    later = f"018bcfe5-6881-7{timed[15:]}"
    random = str(uuid.UUID(int=2**127 + 4 * 2**76 + 5))
    others = ["p1", "ü" * 36, timed.upper(), timed.replace("-", "g"), "x" * 36, f"{timed[:-1]}ü"]
    ids = [timed, *others[:3], random, later, *others[3:]]
    expected = {i: int.from_bytes(sha256(i.encode()).digest()[:8], "big", signed=True) for i in others}
    expected[timed] = expected[later] = 0x018BCFE56880 >> 9
    expected[random] = int.from_bytes(uuid.UUID(random).bytes[:8], "big", signed=True)
    assert [expected[i] for i in ids] == buckets_of(ids).tolist()
    assert buckets_of(ids).tolist() == [buckets_of([i])[0] for i in ids]
    assert [] == buckets_of([]).tolist()
