"""Which of the predictions that arrive are late: their window has been judged already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flywheel_common.arrays import Ints


@dataclass(frozen=True)
class Late:
    """Late predictions per start of their pane, and how many of them came when no more judgement of their
    window was due."""

    panes: Mapping[int, int] = field(default_factory=dict)
    too_late: int = 0


def late_rows(times: Ints | Sequence[int], closed_until: int, labelled_until: int, pane_us: int) -> Late:
    """The late ones of predictions with these event times. Windows that end at or before `closed_until` were
    judged, those at or before `labelled_until` for the last time."""
    known = np.asarray(times, np.int64)
    late = known[known < closed_until]
    starts, counts = np.unique(late // pane_us * pane_us, return_counts=True)
    panes = dict(zip(starts.tolist(), counts.tolist(), strict=True))
    return Late(panes, int(np.count_nonzero(late < labelled_until)))
