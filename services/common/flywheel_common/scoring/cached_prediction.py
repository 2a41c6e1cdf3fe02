"""Cached batch predictions: their keys and values in Redis. Jobs write them, gateways read them.

Key: `prediction:{model resource name}:{entity keys}`. Value, little-endian: int64 microseconds since 1970
UTC, the 8 bytes of `OutputSpec.fingerprint`, then the calibrated values as float64: one for BINARY and
REGRESSION, one per class or element else. A gateway ignores a value whose fingerprint is not that of the
release.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

_HEAD = struct.Struct("<q8s")


@dataclass(frozen=True, slots=True)
class CachedPrediction:
    """Calibrated values, the time whose features they are computed from (microseconds since 1970 UTC), and
    the output that they are of (`OutputSpec.fingerprint`)."""

    values: tuple[float, ...]
    scored_at_micros: int
    output: bytes


def joined_keys(keys: Sequence[Any]) -> str:
    r"""The entity keys joined by `|`, in key order, with `\` before each `\` and `|` of a key.

    Different keys of a feature set, and keys of different length, have different texts.
    """
    return "|".join([str(key).replace("\\", r"\\").replace("|", r"\|") for key in keys])


def key_of(model: str, keys: str) -> str:
    """The Redis key of a prediction; `keys` are `joined_keys`."""
    return f"prediction:{model}:{keys}"


def encode(prediction: CachedPrediction) -> bytes:
    """The Redis value of a prediction."""
    head = _HEAD.pack(prediction.scored_at_micros, prediction.output)
    return head + struct.pack(f"<{len(prediction.values)}d", *prediction.values)


def decode(value: object) -> CachedPrediction | None:
    """The prediction of a Redis value; None if it is none, or not finite."""
    if not isinstance(value, bytes) or len(value) <= _HEAD.size or (len(value) - _HEAD.size) % 8:
        return None
    scored_at, output = _HEAD.unpack_from(value)
    values = struct.unpack_from(f"<{(len(value) - _HEAD.size) // 8}d", value, _HEAD.size)
    return CachedPrediction(values, scored_at, output) if all(map(isfinite, values)) else None
