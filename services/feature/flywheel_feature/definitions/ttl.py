"""Time to live (TTL) of feature values: when a value is stale, and when the online store deletes it.

The TTL of a view is in microseconds; 0 means that its values never become stale. The age of a value is the
time of the read minus its event time; a value exactly as old as its TTL is still fresh. Online reads return a
stale value with status STALE, offline joins return null for it.
"""

from __future__ import annotations

from typing import Any, overload

import polars as pl

from flywheel_common.arrays import Ints, Mask
from flywheel_feature.definitions.model import DAY, HOUR

_FOREVER = 2**63 - 1
"""Larger than any possible age."""
MINIMUM_STALE = HOUR
"""Minimum time for which a row with a TTL stays readable as STALE, microseconds."""
MINIMUM_STATE_LIFETIME = DAY
"""Minimum time for which the state of a stream view's entity is kept after its last event, microseconds."""


@overload
def is_stale(as_of: int, event_time: int, ttl: int) -> bool: ...
@overload
def is_stale(as_of: Ints, event_time: Ints, ttl: int) -> Mask: ...
@overload
def is_stale(as_of: pl.Expr | pl.Series, event_time: pl.Expr, ttl: int) -> pl.Expr: ...
def is_stale(as_of: Any, event_time: Any, ttl: int) -> Any:
    """Whether a value of `event_time` is stale at `as_of` (microseconds): numbers, arrays or expressions."""
    return as_of - event_time > (ttl or _FOREVER)


def earliest_fresh(as_of: int, ttl: int) -> int | None:
    """The oldest event time that is still fresh at `as_of`; None: every event time is."""
    return as_of - ttl if ttl else None


def row_lifetime_ms(ttl: int) -> int:
    """Milliseconds after a write for which the online store keeps a row of a batch view; 0: for ever.

    It is kept for its TTL and then for the larger of TTL and `MINIMUM_STALE`, counted from the write.
    """
    return (ttl + max(ttl, MINIMUM_STALE)) // 1000 if ttl else 0


def state_lifetime_ms(kept: int, ttl: int) -> int:
    """Milliseconds for which the online store keeps the state of an entity after its last event; `kept` is
    the time span of its tiles, microseconds."""
    return max(MINIMUM_STATE_LIFETIME // 1000, kept // 1000 + 2 * ttl // 1000)
