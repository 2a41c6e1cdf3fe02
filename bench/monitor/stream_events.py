"""A stream of predictions with 20 features, and the reference they are compared with."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from aiokafka import AIOKafkaProducer

from flywheel_common.arrays import Floats, Ints
from flywheel_common.columns import from_numpy, from_texts, to_table
from flywheel_common.ids import new_id, uuid7
from flywheel_common.kafka import topics
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.events.v1.event_pb2 import Event

FEATURES = tuple(f"view__feature_{i:02d}" for i in range(20))
BINS = 20
HOUR_US = 3_600_000_000
START_US = 1_700_000_400_000_000
MODEL = "projects/bench/models/m"
VERSION = f"{MODEL}/versions/1"
RELEASE = f"{MODEL}/releases/1"
PARTITIONS = topics.DEFAULT_PARTITIONS


def reference() -> Reference:
    """Standard-normal features with the quantile bins of 20,000 rows."""
    values = np.random.default_rng(1).normal(size=20_000)
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    counts = np.bincount(np.searchsorted(edges, values), minlength=BINS)
    return Reference(
        tuple(
            ColumnReference(
                name,
                True,
                tuple(counts.tolist()),
                edges=tuple(edges.tolist()),
                mean=float(values.mean()),
                stddev=float(values.std()),
                minimum=float(values.min()),
                maximum=float(values.max()),
            )
            for name in FEATURES
        ),
        {"auc": 0.8, "label_mean": 0.3},
    )


@dataclass(frozen=True)
class Stream:
    """`events` predictions in records of `rows`, spread evenly over `hours` of event time from `start_us`, as
    a gateway logs them: in order of time, with entity keys, request fields and subjects."""

    events: int
    rows: int
    hours: float = 1.0
    start_us: int = START_US
    model: str = MODEL
    seed: int = 0

    def records(self) -> Iterator[tuple[int, bytes]]:
        """(partition, value) of each record."""
        rng = np.random.default_rng(self.seed)
        step = self.hours * HOUR_US / self.events
        times = (self.start_us + np.arange(self.events) * step).astype(np.int64)
        for number, first in enumerate(range(0, self.events, self.rows)):
            at = times[first : first + self.rows]
            yield number % PARTITIONS, self._record(at, rng, number % PARTITIONS)

    def _record(self, at: Ints, rng: np.random.Generator, partition: int) -> bytes:
        batch = self.batch(at, rng)
        batch.prediction_ids[:] = [_of_partition(i, partition) for i in batch.prediction_ids]
        event = Event(
            id=new_id(),
            type=batch.DESCRIPTOR.full_name,
            source="flywheel-inference",
            key=str(partition),
            trace_parent=f"00-{uuid.uuid4().hex}-{rng.bytes(8).hex()}-01",
            payload=batch.SerializeToString(),
        )
        event.event_time.FromMicroseconds(int(at[-1]))
        return event.SerializeToString()

    def batch(self, at: Ints, rng: np.random.Generator) -> prediction_pb2.PredictionBatch:
        """Random rows at these times."""
        n = len(at)
        features: Floats = rng.normal(size=(len(FEATURES), n))
        scores = rng.uniform(0.05, 0.95, n)
        tails = [int.from_bytes(rng.bytes(9), "big") for _ in range(n)]
        return prediction_pb2.PredictionBatch(
            model=self.model,
            model_version=f"{self.model}/versions/1",
            release=f"{self.model}/releases/1",
            role=prediction_pb2.PREDICTION_ROLE_CHAMPION,
            prediction_ids=[uuid7(int(t) // 1000, k) for t, k in zip(at, tails, strict=True)],
            event_times=at.astype("<i8").tobytes(),
            features=to_table([from_numpy(f, v) for f, v in zip(FEATURES, features, strict=True)]),
            scores=scores.astype("<f8").tobytes(),
            decisions=(scores >= 0.5).astype("u1").tobytes(),
            sources=np.ones(n, "u1").tobytes(),
            latencies_ms=rng.gamma(4.0, 1.0, n).astype("<f4").tobytes(),
            subjects=[f"user-{k % 1_000_000:06d}" for k in tails],
            entities=to_table([from_texts("user", [f"user-{k % 1_000_000:06d}" for k in tails])]),
            request_fields=to_table([from_numpy("amount", features[0] * 2)]),
            feature_set="projects/bench/featureSets/f/versions/1",
        )


def _of_partition(prediction_id: str, partition: int) -> str:
    """The id with another last digit, such that gateways send it to this partition."""
    ids = (prediction_id[:-1] + digit for digit in "0123456789abcdef")
    return next(i for i in ids if topics.partition_for(i, PARTITIONS) == partition)


def columns_of(stream: Stream, *, role: int = 1, release: int = 1, rollout: str = "") -> PredictionColumns:
    """The whole stream in columns, as answers of this release and role."""
    step = stream.hours * HOUR_US / stream.events
    times = (stream.start_us + np.arange(stream.events) * step).astype(np.int64)
    batch = stream.batch(times, np.random.default_rng(stream.seed))
    batch.role = role  # type: ignore[assignment]
    batch.release, batch.rollout = f"{stream.model}/releases/{release}", rollout
    return prediction_columns(batch, b"")


async def send(bootstrap: str, stream: Stream) -> float:
    """Write the stream to its topic; returns the seconds it took."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, linger_ms=20, max_batch_size=1 << 20, max_request_size=8 << 20
    )
    await producer.start()
    started = time.perf_counter()
    try:
        for partition, value in stream.records():
            await producer.send(topics.PREDICTION_LOGGED, value, partition=partition)
        await producer.flush()
    finally:
        await producer.stop()
    return time.perf_counter() - started
