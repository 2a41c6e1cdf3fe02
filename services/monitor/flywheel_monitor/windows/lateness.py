"""Which of the predictions that arrive are late: their window has been judged already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Late:
    """Late predictions per start of their pane, and how many of them came when no more judgement of their
    window was due."""

    panes: Mapping[int, int] = field(default_factory=dict)
    too_late: int = 0


def late_rows(times: Sequence[int], closed_until: int, labelled_until: int, pane_us: int) -> Late:
    """The late ones of predictions with these event times. Windows that end at or before `closed_until` were
    judged, those at or before `labelled_until` for the last time."""
    late = [t for t in times if t < closed_until]
    panes = Counter(t // pane_us * pane_us for t in late)
    return Late(dict(panes), sum(t < labelled_until for t in late))
