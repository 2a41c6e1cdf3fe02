"""Fills the gateways' cached predictions in Redis from complete predictions.

A prediction replaces an older one, and one of another output; it never replaces a newer one of the same
output, so that a repeated or late job does no harm. Rows without an answer are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from flywheel_common.scoring.cached_prediction import CachedPrediction, encode, joined_keys, key_of
from flywheel_common.signature import OutputSpec
from flywheel_job.batch_scoring.predictions import WITH_VALUES
from flywheel_job.batch_scoring.spec import ERROR_REASON, SCORE_COLUMN, VALUES
from flywheel_job.errors import CacheUnavailable
from flywheel_job.launch import TIME

BATCH_ROWS = 2_000
TRIES = 8
"""Attempts of a call while Redis is away: about a minute."""

_SET_UNLESS_NEWER = """
local function micros(value)
  local high, sum = string.byte(value, 8), 0
  if high >= 128 then return -1 end
  for place = 8, 1, -1 do sum = sum * 256 + string.byte(value, place) end
  return sum
end
for i, key in ipairs(KEYS) do
  local new, old = ARGV[i + 1], redis.call('GET', key)
  if not (old and #old == #new and string.sub(old, 9, 16) == string.sub(new, 9, 16)
          and micros(old) > micros(new)) then
    redis.call('SET', key, new, 'EX', ARGV[1])
  end
end
"""
"""Keys, and the seconds to live followed by the values. Lua's numbers hold microseconds until the year 2255
exactly."""


class PredictionCache:
    """Writes the predictions of one model."""

    def __init__(self, url: str, model: str, output: OutputSpec, ttl_seconds: int) -> None:
        retry = Retry(ExponentialBackoff(cap=15, base=0.25), TRIES)
        self._redis = Redis.from_url(url, socket_connect_timeout=5, socket_timeout=30, retry=retry)
        self._model, self._output, self._ttl = model, output, ttl_seconds

    def columns(self, join_keys: Sequence[str]) -> list[str]:
        """The columns of the predictions that `fill` needs."""
        values = VALUES if self._output.kind in WITH_VALUES else SCORE_COLUMN
        return [*join_keys, TIME, ERROR_REASON, values]

    def fill(self, join_keys: Sequence[str], batch: pa.RecordBatch) -> int:
        """Write a batch and return how many rows have predictions. Raises CacheUnavailable."""
        entries = self.entries(join_keys, batch)
        names, values = list(entries), list(entries.values())
        try:
            for start in range(0, len(names), BATCH_ROWS):
                end = start + BATCH_ROWS
                keys = names[start:end]
                self._redis.eval(_SET_UNLESS_NEWER, len(keys), *keys, self._ttl, *values[start:end])
        except (RedisError, OSError) as error:
            raise CacheUnavailable(f"Redis did not take the predictions: {type(error).__name__}.") from error
        return len(names)

    def entries(self, join_keys: Sequence[str], batch: pa.RecordBatch) -> dict[str, bytes]:
        """The Redis keys and values of a batch; of several rows of a key, the one with the latest time.

        A time that has not come counts as now: no time of a row may keep its prediction from becoming old.
        """
        now = time.time_ns() // 1000
        micros = batch.column(TIME).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
        failed = batch.column(ERROR_REASON).is_valid().to_pylist()
        keys = zip(*(batch.column(name).to_pylist() for name in join_keys), strict=True)
        newest: dict[str, tuple[int, bytes]] = {}
        for key, time_micros, bad, values in zip(keys, micros, failed, self._values(batch), strict=True):
            if bad or None in key:  # a null key names no entity
                continue
            time_micros = min(time_micros, now)
            name = key_of(self._model, joined_keys(key))
            if name not in newest or newest[name][0] <= time_micros:
                value = encode(CachedPrediction(tuple(values), time_micros, self._output.fingerprint))
                newest[name] = time_micros, value
        return {name: value for name, (_, value) in newest.items()}

    def close(self) -> None:
        self._redis.close()

    def _values(self, batch: pa.RecordBatch) -> Sequence[Any]:
        if self._output.kind in WITH_VALUES:
            return batch.column(VALUES).to_pylist()
        return np.asarray(batch.column(SCORE_COLUMN).to_numpy(zero_copy_only=False)).reshape(-1, 1).tolist()
