"""Rows in the binary COPY format, read back by an independent reader."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pytest

from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.postgres.prediction_copy import COLUMNS, copy_data
from flywheel_monitor.store.postgres.variants import Variant
from flywheel_monitor.windows.layout import Layout
from tests.support.builders.monitor import MODEL, REFERENCE, SHADOW, START_US, predictions, version_name


def variant(batch: PredictionColumns) -> Variant:
    layout = Layout.of(REFERENCE.columns, batch.output)
    return Variant(7, batch.key, WatchedVersion(3, version_name(), 5, MODEL, REFERENCE, layout))


def rows_in(data: bytes) -> Iterator[dict[str, bytes | None]]:
    """The fields of each row, as the documentation of PostgreSQL describes them."""
    assert data.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    at = 19
    while (fields := struct.unpack_from(">h", data, at)[0]) != -1:
        at += 2
        row: dict[str, bytes | None] = {}
        for name in COLUMNS[:fields]:
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row[name] = None if length < 0 else data[at : at + length]
            at += max(length, 0)
        yield row
    assert at + 2 == len(data)


@pytest.mark.parametrize("texts", [("a", "b", "c"), ("a", "bb", "ü€"), ("", "", "")])
@pytest.mark.parametrize("costs", [(), (0.5, np.nan, 2.0)])
def test_rows_have_the_values_of_their_batch(texts: tuple[str, ...], costs: tuple[float, ...]) -> None:
    batch = predictions(
        ["id-1", "id-22", "é"],
        [0.25, np.nan, 0.75],
        times=[START_US, START_US + 1, START_US + 2],
        segments=texts,
        subjects=texts[::-1],
        sources=[1, 4, 2],
        costs=costs,
    )
    rows = {str(r["prediction_id"], "utf-8"): r for r in rows_in(copy_data([batch], [variant(batch)], 2))}  # type: ignore[arg-type]
    assert set(batch.ids) == set(rows)
    for i, prediction_id in enumerate(batch.ids):
        row = rows[prediction_id]
        cost = batch.costs[i]
        expected = {
            "model_id": struct.pack(">i", 5),
            "prediction_id": prediction_id.encode(),
            "shadow_variant": struct.pack(">i", 0),
            "variant_id": struct.pack(">i", 7),
            "event_time": struct.pack(">q", START_US + i),
            "decision": bytes([bool(batch.scores[i] >= 0.5)]),
            "failed": bytes([i == 1]),
            "source": struct.pack(">h", (1, 4, 2)[i]),
            "latency_ms": struct.pack(">f", 3.0),
            "segment": texts[i].encode(),
            "subject": texts[::-1][i].encode(),
            "cost": None if np.isnan(cost) else struct.pack(">f", cost),
            "outputs": None,
            "partition": struct.pack(">h", 2),
        }
        score = struct.unpack(">d", row.pop("score") or b"")[0]
        assert batch.scores[i] == score or (np.isnan(batch.scores[i]) and np.isnan(score))
        assert expected == row


def test_rows_of_a_shadow_with_classes_name_its_variant_and_outputs() -> None:
    scores = np.array([[0.2, 0.8], [0.6, 0.4]])
    batch = predictions(["a", "b"], scores, role=SHADOW, kind=2, class_names=["x", "y"])
    found = list(rows_in(copy_data([batch], [variant(batch)], 0)))
    assert [struct.pack(">i", 7)] * 2 == [r["shadow_variant"] for r in found]
    assert [row.astype("<f8").tobytes() for row in scores] == [r["outputs"] for r in found]
