"""Blocks: parts of a window with about equally many consecutive rows, from which `drift.design_effect`
estimates how dependent the rows are."""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Ints

MAX_BLOCKS = 20
BLOCK_ROWS = 50
"""Least rows per block on average: blocks must be longer than the dependence lasts."""


def block_of(rows: Ints) -> Ints:
    """[P] block of each pane of `rows` [P], in the order of time: 0, 1, … below MAX_BLOCKS."""
    total = int(rows.sum())
    count = max(1, min(MAX_BLOCKS, total // BLOCK_ROWS, int(np.count_nonzero(rows))))
    middle = np.cumsum(rows) - rows / 2
    block = np.minimum((middle * count / max(total, 1)).astype(np.int64), count - 1)
    return np.unique(block, return_inverse=True)[1].astype(np.int64)
