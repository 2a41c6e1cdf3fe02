"""The code of SCORE jobs: answers, refused rows, partitions, resumption, and what a failed job leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.batch_scoring.output import Output
from flywheel_job.batch_scoring.partitions import Partition, partitions_of
from flywheel_job.batch_scoring.prefetch import prefetched
from flywheel_job.worker import call
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import run_onnx
from tests.support.builders.kinds import CLASSES, KINDS, regression
from tests.support.peers.inference import RegistryServicer, kind_release
from tests.support.scoring_job import PREDICTIONS, TABLE, read_predictions, scoring_job, write_table
from tests.support.training_job import run_here

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> fs.FileSystem:
    return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())


def rows(delays: list[float | None], miles: list[float], first: int = 0) -> pa.Table:
    return pa.table(
        {
            "carrier": [f"c{first + n}" for n in range(len(delays))],
            "event_timestamp": pa.array([NOON] * len(delays), pa.timestamp("us", "UTC")),
            "hist__delay": pa.array(delays, pa.float64()),
            "trip__miles": pa.array(miles, pa.float64()),
        }
    )


def spec_of(store: fs.FileSystem, kind: str = "regression", *, params: Any = None, **release: Any) -> Any:
    model = KINDS[kind]()
    message = kind_release(RegistryServicer(), 1, model, **release)
    return scoring_job(store, message, {"model.onnx": model.file}, **(params or {}))


def minutes(delays: list[float], miles: list[float]) -> list[float]:
    """The answers of the regression, from ONNX Runtime."""
    model = regression()
    found = run_onnx(
        model.file, {"x": np.stack([delays, miles], axis=1).astype(float)}, model.signature.output.tensor
    )
    return [float(value) for value in found]


def test_every_row_gets_the_models_answer_in_the_order_of_the_table(store: fs.FileSystem) -> None:
    write_table(store, rows([1.0, 2.0], [5.0, 6.0]), rows([3.0], [7.0], first=2))
    outcome = run_here(spec_of(store), store)
    assert outcome.succeeded, outcome.error_message
    found = read_predictions(store)
    assert [row["carrier"] for row in found] == ["c0", "c1", "c2"]
    assert [row["score"] for row in found] == pytest.approx(minutes([1, 2, 3], [5, 6, 7]), rel=1e-12)
    assert {row["error_reason"] for row in found} == {None}
    assert found[0]["event_timestamp"] == NOON
    assert list(found[0]) == ["carrier", "event_timestamp", "score", "error_reason"]


def test_classes_and_decisions_follow_calibration_and_threshold(store: fs.FileSystem) -> None:
    delays, miles = [0.0, 3.0, -3.0], [0.0, -3.0, 3.0]
    write_table(store, rows(delays, miles))
    calibration = model_pb2.Calibration(temperature=model_pb2.Calibration.Temperature(temperature=0.25))
    outcome = run_here(spec_of(store, "multiclass", threshold=0.8, calibration=calibration), store)
    assert outcome.succeeded, outcome.error_message
    model = KINDS["multiclass"]()
    raw = run_onnx(model.file, {"INPUT": np.stack([delays, miles], 1).astype(np.float32)}, "probabilities")
    for row, probabilities in zip(read_predictions(store), raw.astype(float).tolist(), strict=True):
        powers = [p**4 for p in probabilities]  # p ^ (1 / 0.25), normalised
        expected = [p / sum(powers) for p in powers]
        assert row["values"] == pytest.approx(expected, abs=1e-6)
        assert row["score"] == pytest.approx(max(expected), abs=1e-6)
        assert row["decision"] == (max(expected) >= 0.8)
        best = CLASSES[expected.index(max(expected))] if row["decision"] else None
        assert row["predicted_class"] == best


def test_a_vector_has_values_and_neither_score_nor_decision(store: fs.FileSystem) -> None:
    write_table(store, rows([1.0], [2.0]))
    run_here(spec_of(store, "vector"), store)
    (row,) = read_predictions(store)
    raw = run_onnx(KINDS["vector"]().file, {"INPUT": np.array([[1, 2]], np.float32)}, "embedding")
    assert row["values"] == pytest.approx(raw[0].tolist(), abs=1e-6)
    assert list(row) == ["carrier", "event_timestamp", "values", "error_reason"]


def test_a_row_without_an_answer_has_its_reason_and_no_score(store: fs.FileSystem) -> None:
    write_table(store, rows([1.0, None, 3.0], [5.0, 6.0, math.inf]))
    policy = model_pb2.FeaturePolicy(feature="hist__delay", missing=model_pb2.FEATURE_ACTION_FAIL)
    outcome = run_here(spec_of(store, feature_policies=[policy]), store)
    assert outcome.succeeded, outcome.error_message
    found = read_predictions(store)
    assert [row["error_reason"] for row in found] == [None, "FEATURE_MISSING", "BAD_SCORE"]
    assert [row["score"] for row in found] == [pytest.approx(minutes([1], [5])[0]), None, None]
    (report,) = [one for one in outcome.artifacts if one.name == "score.json"]
    counts = json.loads(objects.read(store, report.uri))
    assert (counts["rows"], counts["failed_rows"]) == (3, 2)


def test_a_default_of_the_release_replaces_a_missing_feature(store: fs.FileSystem) -> None:
    write_table(store, rows([None], [6.0]))
    policy = model_pb2.FeaturePolicy(
        feature="hist__delay",
        missing=model_pb2.FEATURE_ACTION_DEFAULT,
        default_value=value_pb2.Value(double_value=2.5),
    )
    run_here(spec_of(store, feature_policies=[policy]), store)
    assert [row["score"] for row in read_predictions(store)] == pytest.approx(minutes([2.5], [6]))


def test_a_segment_has_its_own_threshold(store: fs.FileSystem) -> None:
    write_table(store, rows([0.0, 0.0], [0.0, 0.0]))
    release = {"threshold": 0.99, "segment_keys": ["carrier"], "segment_thresholds": {"carrier=c1": 0.01}}
    run_here(spec_of(store, "multiclass", **release), store)
    assert [row["decision"] for row in read_predictions(store)] == [False, True]


def test_a_table_without_the_keys_of_segment_thresholds_is_refused(store: fs.FileSystem) -> None:
    write_table(store, rows([0.0], [0.0]))
    keys = {"segment_keys": ["channel", "carrier"], "threshold": 0.99}
    spec = spec_of(store, "multiclass", **keys, segment_thresholds={"channel=web": 0.01})
    outcome = run_here(spec, store)
    assert (outcome.succeeded, outcome.error_reason) == (False, "UNUSABLE_TABLE")
    assert "no column 'channel'" in outcome.error_message
    outcome = run_here(spec_of(store, "multiclass", **keys, segment_thresholds={"carrier=c0": 0.01}), store)
    assert outcome.succeeded, "no threshold depends on the channel"
    assert [row["decision"] for row in read_predictions(store)] == [True]


def test_partitions_are_row_groups_of_at_most_the_given_rows(store: fs.FileSystem) -> None:
    write_table(store, rows([0.0] * 10, [0.0] * 10), rows([0.0] * 3, [0.0] * 3), row_group_rows=4)
    found = partitions_of(store, TABLE, 8)
    assert [(one.number, one.path[-9:], one.first, one.last, one.rows) for one in found] == [
        (0, "0.parquet", 0, 2, 8),
        (1, "0.parquet", 2, 3, 2),
        (2, "1.parquet", 0, 1, 3),
    ]


def test_a_killed_job_continues_after_its_finished_partitions(
    store: fs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays, miles = [float(n) for n in range(12)], [1.0] * 12
    write_table(store, rows(delays, miles), row_group_rows=4)
    spec = spec_of(store, params={"partition_rows": 4})
    scored: list[int] = []
    original = Output.write

    def dies_in_the_second(self: Any, partition: Any, *rest: Any) -> None:
        scored.append(partition.number)
        if scored == [0, 1]:
            raise KeyboardInterrupt
        original(self, partition, *rest)

    monkeypatch.setattr(Output, "write", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_here(spec, store)
    assert read_predictions(store) and Output(store, PREDICTIONS).committed() is None
    visible = [path for path in objects.files_under(store, PREDICTIONS) if "_temporary" not in path]
    assert visible == []
    outcome = run_here(spec, store)
    assert outcome.succeeded, outcome.error_message
    assert scored == [0, 1, 1, 2]
    assert [row["score"] for row in read_predictions(store)] == pytest.approx(minutes(delays, miles))
    done = [(point.key, point.step) for point in outcome.points]
    assert done == [("rows_total", 12), ("rows_resumed", 4), ("rows_done", 8), ("rows_done", 12)]
    assert [p for p in objects.files_under(store, PREDICTIONS) if "_temporary" in p] == []


def test_a_partition_without_its_marker_is_written_again(store: fs.FileSystem) -> None:
    write_table(store, rows([1.0], [2.0]))
    objects.write(store, f"{PREDICTIONS}_temporary/part-000000.parquet", b"half a file")
    outcome = run_here(spec_of(store), store)
    assert outcome.succeeded, outcome.error_message
    assert [row["score"] for row in read_predictions(store)] == pytest.approx(minutes([1], [2]))


def test_an_interrupted_partition_leaves_the_one_of_another_attempt(store: fs.FileSystem) -> None:
    """An attempt can be ended after the next one has finished the same partition."""
    output, partition = Output(store, PREDICTIONS), Partition(0, "t", 0, 1, 3)
    batch = pa.record_batch({"score": [1.0, 2.0, 3.0]})

    def interrupted() -> Iterator[pa.RecordBatch]:
        yield batch.slice(0, 1)
        raise SystemExit

    output.write(partition, batch.schema, [batch])
    with pytest.raises(SystemExit):
        output.write(partition, batch.schema, interrupted())
    assert batch.to_pylist() == read_predictions(store)
    assert [0] == list(output.finished())


def test_a_repeated_job_changes_no_committed_prediction(store: fs.FileSystem) -> None:
    write_table(store, rows([1.0], [2.0]))
    spec = spec_of(store)
    run_here(spec, store)
    before = {path: store.get_file_info(path).mtime_ns for path in objects.files_under(store, PREDICTIONS)}
    outcome = run_here(spec, store)
    assert outcome.succeeded
    after = {path: store.get_file_info(path).mtime_ns for path in objects.files_under(store, PREDICTIONS)}
    assert before == after


@pytest.mark.parametrize(
    ("harm", "reason", "text"),
    [
        ("no rows", "UNUSABLE_TABLE", "no rows"),
        ("no key", "UNUSABLE_TABLE", "no column 'carrier'"),
        ("no feature", "UNUSABLE_TABLE", "no column 'hist__delay'"),
        ("no model", "UNUSABLE_MODEL", "cannot load the model"),
        ("other bytes", "UNUSABLE_MODEL", "do not have the digest"),
        ("no cache", "CACHE_UNAVAILABLE", "no address"),
    ],
)
def test_a_job_that_cannot_succeed_fails_and_leaves_no_predictions(
    store: fs.FileSystem, harm: str, reason: str, text: str
) -> None:
    table = rows([1.0], [2.0])
    dropped = {"no key": "carrier", "no feature": "hist__delay"}.get(harm)
    table = table.drop_columns([dropped]) if dropped else table
    write_table(store, table.slice(0, 0) if harm == "no rows" else table)
    params = {"cache_ttl_seconds": 60} if harm == "no cache" else {}
    spec = spec_of(store, params=params)
    if harm == "no model":
        release = kind_release(RegistryServicer(), 1, regression())
        spec = scoring_job(store, release, {"model.onnx": b"no model"})
    if harm == "other bytes":
        objects.write(store, "s3://b/files/model.onnx", b"other bytes")
    outcome = run_here(spec, store)
    assert (outcome.succeeded, outcome.error_reason) == (False, reason)
    assert text in outcome.error_message
    assert objects.files_under(store, PREDICTIONS) == []


def test_read_ahead_keeps_order_raises_and_stops() -> None:
    with prefetched(range(10)) as items:
        assert list(items) == list(range(10))

    def fails() -> Any:
        yield 1
        raise OSError("the store is away")

    with prefetched(fails()) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="away"):
            next(items)
    read: list[int] = []
    with prefetched(read.append(n) or n for n in range(1000)) as items:  # type: ignore[func-returns-value]
        next(items)
    assert len(read) < 10


def test_times_of_other_units_and_zones_are_carried(store: fs.FileSystem) -> None:
    table = rows([1.0], [2.0])
    naive = pa.array([NOON.replace(tzinfo=None) + timedelta(hours=1)], pa.timestamp("ns"))
    write_table(store, table.set_column(1, "event_timestamp", naive))
    run_here(spec_of(store), store)
    assert read_predictions(store)[0]["event_timestamp"] == NOON.replace(tzinfo=None) + timedelta(hours=1)


def test_ranks_divide_the_partitions(store: fs.FileSystem) -> None:
    delays, miles = [float(n) for n in range(10)], [1.0] * 10
    write_table(store, rows(delays, miles), row_group_rows=2)
    spec = spec_of(store, params={"partition_rows": 2})
    for rank, parts in ((1, {1, 3}), (0, {0, 1, 2, 3, 4})):
        call(spec.function, spec, store, rank=rank, world_size=2)
        assert set(Output(store, PREDICTIONS).finished()) == parts
    call(spec.export, spec, store)
    assert [row["score"] for row in read_predictions(store)] == pytest.approx(minutes(delays, miles))
