"""SCORE jobs fill the cached predictions of a real Redis."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from redis import Redis

from flywheel_common.scoring.cached_prediction import CachedPrediction, decode, key_of
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_common.value import from_micros
from flywheel_job.batch_scoring import cache
from flywheel_job.batch_scoring.cache import PredictionCache
from flywheel_job.errors import CacheUnavailable

MODEL = "projects/p/models/m"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MICROS = 1_767_268_800_000_000
BINARY, REGRESSION = OutputSpec(OutputKind.BINARY), OutputSpec(OutputKind.REGRESSION)


def batch(rows: list[tuple[str, int, float | None, datetime]]) -> pa.RecordBatch:
    """Rows of (carrier, number, score or None, time)."""
    return pa.RecordBatch.from_pydict(
        {
            "carrier": [row[0] for row in rows],
            "number": [row[1] for row in rows],
            "score": pa.array([row[2] for row in rows], pa.float64()),
            "event_timestamp": pa.array([row[3] for row in rows], pa.timestamp("us", "UTC")),
            "error_reason": [None if row[2] is not None else "FEATURE_MISSING" for row in rows],
        }
    )


def fill(url: str, output: OutputSpec, *rows: Any, ttl: int = 60) -> int:
    filler = PredictionCache(url, MODEL, output, ttl)
    try:
        return filler.fill(["carrier", "number"], batch(list(rows)))
    finally:
        filler.close()


def read(url: str, keys: str) -> CachedPrediction | None:
    with Redis.from_url(url) as redis:
        return decode(redis.get(key_of(MODEL, keys)))


def test_rows_with_answers_are_cached_by_their_entity_keys(redis_url: str) -> None:
    rows = [("UA", 7, 0.25, NOON), ("D|L", 8, 0.5, NOON), ("AA", 9, None, NOON), (None, 1, 0.5, NOON)]
    assert fill(redis_url, BINARY, *rows) == 2
    with Redis.from_url(redis_url) as redis:
        assert len(redis.keys("prediction:*")) == 2
    assert read(redis_url, "UA|7") == CachedPrediction((0.25,), MICROS, BINARY.fingerprint)
    assert read(redis_url, "D\\|L|8") == CachedPrediction((0.5,), MICROS, BINARY.fingerprint)
    assert read(redis_url, "AA|9") is None
    with Redis.from_url(redis_url) as redis:
        assert 50 < redis.ttl(key_of(MODEL, "UA|7")) <= 60


def test_a_prediction_never_replaces_a_newer_one_of_the_same_output(redis_url: str) -> None:
    later = NOON + timedelta(microseconds=1)
    fill(redis_url, BINARY, ("UA", 7, 0.9, later))
    fill(redis_url, BINARY, ("UA", 7, 0.1, NOON))
    assert read(redis_url, "UA|7") == CachedPrediction((0.9,), MICROS + 1, BINARY.fingerprint)
    fill(redis_url, BINARY, ("UA", 7, 0.2, later))
    assert read(redis_url, "UA|7") == CachedPrediction((0.2,), MICROS + 1, BINARY.fingerprint)
    fill(redis_url, REGRESSION, ("UA", 7, 12.0, NOON))
    assert read(redis_url, "UA|7") == CachedPrediction((12.0,), MICROS, REGRESSION.fingerprint)


def test_of_several_rows_of_an_entity_the_latest_is_cached(redis_url: str) -> None:
    earlier = NOON - timedelta(days=30_000)
    fill(redis_url, BINARY, ("UA", 7, 0.1, earlier), ("UA", 7, 0.2, NOON), ("UA", 7, 0.3, earlier))
    assert read(redis_url, "UA|7") == CachedPrediction((0.2,), MICROS, BINARY.fingerprint)
    fill(redis_url, BINARY, ("UA", 7, 0.4, earlier))
    assert read(redis_url, "UA|7") == CachedPrediction((0.2,), MICROS, BINARY.fingerprint)


def test_a_time_that_has_not_come_counts_as_now(redis_url: str) -> None:
    fill(redis_url, BINARY, ("UA", 7, 0.1, datetime(2200, 1, 1, tzinfo=UTC)))
    cached = read(redis_url, "UA|7")
    assert cached is not None
    assert abs(from_micros(cached.scored_at_micros) - datetime.now(UTC)) < timedelta(minutes=5)


def test_more_rows_than_one_call_takes_are_all_cached(redis_url: str) -> None:
    count = 2 * cache.BATCH_ROWS + 1
    assert fill(redis_url, BINARY, *(("UA", n, n / count, NOON) for n in range(count))) == count
    assert read(redis_url, f"UA|{count - 1}") == CachedPrediction(
        ((count - 1) / count,), MICROS, BINARY.fingerprint
    )


def test_an_unreachable_redis_is_a_clear_error_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "TRIES", 0)
    with pytest.raises(CacheUnavailable, match="ConnectionError") as caught:
        fill("redis://:secret@127.0.0.1:1/0", BINARY, ("UA", 7, 0.9, NOON))
    assert not re.search("secret", str(caught.value))
