"""The order of events in windows: by event time, then known time, then a rank derived from the event id.

The later event has the larger value. Online tiles and offline windows use this order, so FIRST, LAST and
LAST_N choose the same event of several with equal event times. Rows of batch views have no event ids: of
equal event and created times, the row that was written (online) or read (offline) last wins
(offline/joins/point_in_time.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from flywheel_common.arrays import Ints, Mask


def known_times(event: Ints, created: Ints, given: Mask) -> Ints:
    """[n] when each event became known: its event time or, where one is given and later, its created time."""
    return np.where(given, np.maximum(created, event), event).astype(np.int64)


def event_ranks(event_ids: Sequence[str]) -> Ints:
    """[n] numbers below 2^52 that order events of equal times: the first bits of BLAKE2b of the id."""
    ranks = [
        int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") >> 12 for i in event_ids
    ]
    return np.array(ranks, dtype=np.int64)
