"""Records that are decoded together give what each of them gives alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flywheel_common.columns import from_lists, from_numpy, from_texts, to_table
from flywheel_common.errors import InvalidArgument
from flywheel_common.ids import uuid7
from flywheel_common.kafka.envelope import build_event, parse_event, payload_of
from flywheel_common.value import from_micros
from flywheel_monitor.archive.parquet import batch_table
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_monitor.ingest.similar_records import FEWEST, SimilarRecords
from flywheel_protos.events.v1.prediction_pb2 import PredictionBatch
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_INT64_LIST, DATA_TYPE_STRING_LIST

COLUMNS = (
    "ids",
    "event_times",
    "outputs",
    "scores",
    "decisions",
    "sources",
    "latencies_ms",
    "costs",
    "failed",
)


def record(
    rng: np.random.Generator,
    rows: int,
    *,
    role: int = 1,
    classes: int = 0,
    nulls: bool = False,
    model: str = "projects/p/models/m",
) -> bytes:
    """A record as a gateway writes it, with values at random."""
    at = 1_700_000_000_000_000 + rng.integers(0, 10**9, rows)
    valid = rng.uniform(size=rows) > 0.3 if nulls else None
    scores = rng.uniform(size=(rows, max(classes, 1)))
    batch = PredictionBatch(
        model=model,
        model_version=f"{model}/versions/1",
        release=f"{model}/releases/1",
        role=role,  # type: ignore[arg-type]
        prediction_ids=[uuid7(int(t) // 1000, int(rng.integers(2**62))) for t in at],
        event_times=at.astype("<i8").tobytes(),
        features=to_table(
            [
                from_numpy("x", rng.normal(size=rows), valid),
                from_numpy("f", rng.normal(size=rows).astype(np.float32)),
                from_numpy("b", rng.uniform(size=rows) > 0.5),
                from_texts("c", rng.choice(["AA", "DL"], rows).tolist()),
            ]
        ),
        scores=scores.astype("<f8").tobytes(),
        decisions=rng.integers(0, 2, rows).astype("u1").tobytes(),
        sources=rng.integers(1, 5, rows).astype("u1").tobytes(),
        latencies_ms=rng.gamma(2.0, size=rows).astype("<f4").tobytes(),
        subjects=[f"user-{k}" for k in rng.integers(10, 100, rows)],
        segments=[f"s={k}" for k in rng.integers(0, 3, rows)],
        costs=rng.uniform(size=rows).astype("<f4").tobytes(),
        entities=to_table([from_texts("user", [f"user-{k}" for k in rng.integers(10, 100, rows)])]),
        request_fields=to_table([from_numpy("amount", rng.normal(size=rows))]),
        applied_offsets=to_table(
            [
                from_lists("w@2", [[3, k] * (k % 2) for k in range(rows)], DATA_TYPE_INT64_LIST),
                from_lists("t@1", [["ab"] * (k % 3) for k in range(rows)], DATA_TYPE_STRING_LIST),
            ]
        ),
        output_kind=2 if classes else 1,
        score_width=max(classes, 1),
        class_names=[f"c{k}" for k in range(classes)],
    )
    time = from_micros(int(at[-1]))
    return build_event(batch, source="gateway", key="0", event_time=time).SerializeToString()


def alone(value: bytes) -> PredictionColumns:
    event = parse_event(value)
    return prediction_columns(payload_of(event, PredictionBatch), event.payload)


def together(values: list[bytes]) -> list[tuple[list[int], PredictionColumns]]:
    """(indices of the records, their joint columns) of each group, then of each other record."""
    groups, rest = SimilarRecords().join(values)
    found = [
        (list(g.indices), prediction_columns(g.batch, g.batch.SerializeToString(), g.arrivals))
        for g in groups
    ]
    return found + [([i], alone(values[i])) for i in rest]


def assert_equal(values: list[bytes], indices: list[int], joint: PredictionColumns) -> None:
    """Every column, and the archived rows, are those of the single records."""
    singles = [alone(values[i]) for i in indices]
    for name in COLUMNS:
        expected = np.concatenate([getattr(s, name) for s in singles])
        np.testing.assert_array_equal(getattr(joint, name), expected, err_msg=name)
    for name in ("segments", "subjects"):
        assert getattr(joint, name) == sum((getattr(s, name) for s in singles), ())
    for name, (found, valid) in joint.features.items():
        parts = [s.features[name] for s in singles]
        np.testing.assert_array_equal(found, np.concatenate([p for p, _ in parts]), err_msg=name)
        np.testing.assert_array_equal(valid, np.concatenate([v for _, v in parts]), err_msg=name)
    assert {(joint.key, joint.output)} == {(s.key, s.output) for s in singles}
    archived = batch_table(joint.records[0].payload, np.ones(len(joint.ids), np.bool_))[1].to_pylist()
    rows: list[Any] = []
    for i in indices:
        payload = parse_event(values[i]).payload
        n = len(PredictionBatch.FromString(payload).prediction_ids)
        rows += batch_table(payload, np.ones(n, np.bool_))[1].to_pylist()
    assert repr(archived) == repr(rows)  # NaN equals NaN


@pytest.mark.parametrize("rows", [1, 3, 25])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("nulls", [False, True])
def test_similar_records_give_the_rows_of_each(rows: int, classes: int, nulls: bool) -> None:
    rng = np.random.default_rng(rows + classes)
    values = [record(rng, rows, classes=classes, nulls=nulls, role=1 + i % 2) for i in range(60)]
    found = together(values)
    assert sorted(i for indices, _ in found for i in indices) == list(range(60))
    assert max(len(indices) for indices, _ in found) > 2
    for indices, joint in found:
        assert_equal(values, indices, joint)
        assert joint.first_record().scores.tolist() == alone(values[indices[0]]).scores.tolist()
        assert joint.arrivals.tolist() == [i for i in indices for _ in range(rows)] or len(indices) == 1


def test_damaged_records_are_never_decoded_as_others() -> None:
    rng = np.random.default_rng(7)
    similar = SimilarRecords()
    similar.join([record(rng, 2) for _ in range(4 * FEWEST)])
    joined = damaged = 0
    for _ in range(3000):
        value = bytearray(record(rng, 2))
        for _ in range(rng.integers(1, 4)):
            value[rng.integers(len(value))] = rng.integers(256)
        groups, rest = similar.join([bytes(value)])
        try:
            single = alone(bytes(value))
        except InvalidArgument:
            damaged += 1
            # What is checked on values is checked on the joint batch too.
            for group in groups:
                with pytest.raises(InvalidArgument):
                    prediction_columns(group.batch, b"", group.arrivals)
            continue
        assert [0] == rest or [(0,)] == [g.indices for g in groups]
        for group in groups:
            joined += 1
            assert_equal(
                [bytes(value)], [0], prediction_columns(group.batch, group.batch.SerializeToString())
            )
            assert single.key == prediction_columns(group.batch, b"").key
    assert joined > 300
    assert damaged > 100


def test_templates_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel_monitor.ingest.similar_records.MOST_BYTES", 20_000)
    rng = np.random.default_rng(3)
    similar = SimilarRecords()
    for rows in range(1, 12):
        values = [record(rng, rows) for _ in range(20)]
        groups, rest = similar.join(values)
        assert 20 == sum(len(g.indices) for g in groups) + len(rest)
    assert similar._bytes <= 20_000


def test_records_of_models_with_names_of_one_length_are_joined_by_model() -> None:
    rng = np.random.default_rng(0)
    models = [f"projects/p/models/{name}" for name in "abc"]
    values = [record(rng, 2, model=models[i % 3]) for i in range(90)]
    found = together(values)
    assert list(range(len(values))) == sorted(i for indices, _ in found for i in indices)
    assert set(models) == {joint.key.model for indices, joint in found if len(indices) >= FEWEST}
    for indices, joint in found:
        assert_equal(values, indices, joint)
        assert {models[i % 3] for i in indices} == {joint.key.model}


def test_ids_between_other_fields_are_taken_in_order() -> None:
    """An encoder may write the entries of a repeated field anywhere in a message."""
    values = []
    for k in range(10, 10 + 8 * FEWEST):
        event = parse_event(record(np.random.default_rng(k), 4))
        batch = payload_of(event, PredictionBatch)
        ids = [f"{k}{i}" for i in range(4)]
        first, rest, last = (PredictionBatch(prediction_ids=part) for part in (ids[:2], ids[2:3], ids[3:]))
        del batch.prediction_ids[:]
        event.payload = b"".join(m.SerializeToString() for m in (first, batch, rest, last))
        values.append(event.SerializeToString())
    groups, _ = SimilarRecords().join(values)
    assert max(len(group.indices) for group in groups) > FEWEST
    for group in groups:
        expected = [f"{10 + k}{i}" for k in group.indices for i in range(4)]
        assert expected == list(group.batch.prediction_ids)
