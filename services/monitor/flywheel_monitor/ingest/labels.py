"""Which labels count, and which of several labels of a prediction is valid."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from flywheel_common.arrays import Mask
from flywheel_monitor.ingest.batches import OutcomeColumns
from flywheel_monitor.windows.losses import fits
from flywheel_monitor.windows.output import Output, within_limit


class Label(NamedTuple):
    """A label of a prediction. The largest (event time, outcome id) wins, so that repeats and any order of
    arrival end in the same label."""

    event_time: int
    outcome_id: str
    value: float
    class_name: str = ""

    def replaces(self, other: Label) -> bool:
        """Whether this label is newer than the other. The value does not matter."""
        return self[:2] > other[:2]


def unfit(labels: OutcomeColumns, outputs: Collection[Output]) -> Mask:
    """[n] bool: labels that fit the output of no version of their model. Without a version, those that fit no
    output at all."""
    if not outputs:
        named = np.array([bool(name) for name in labels.class_names], np.bool_)
        return ~(named | within_limit(labels.values))
    rows = zip(labels.values.tolist(), labels.class_names, strict=True)
    return np.array([not any(fits(o, value, name) for o in outputs) for value, name in rows], np.bool_)
