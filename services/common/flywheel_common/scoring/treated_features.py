"""Features of a batch as the release's policies treat them: nulls, defaults, or rows that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from flywheel_common.arrays import Array, Mask
from flywheel_common.scoring.feature_block import (
    NOT_FOUND,
    NOT_YET_VALID,
    NULL,
    PRESENT,
    STALE,
    FeatureBlock,
    FeatureColumn,
)
from flywheel_common.scoring.feature_policy import DEFAULT, FAIL, FeaturePolicy


class Treated(NamedTuple):
    """`block`: features for the model. `missing`, `stale`: row that fails → its first such feature."""

    block: FeatureBlock
    missing: dict[int, str]
    stale: dict[int, str]


def treat(policies: Sequence[FeaturePolicy], block: FeatureBlock) -> Treated:
    """Applies the policies to a block. Inputs without a policy stay as they are: null."""
    missing_rows: dict[int, str] = {}
    stale_rows: dict[int, str] = {}
    if not policies or (block.statuses == PRESENT).all():
        return Treated(block, missing_rows, stale_rows)
    places = {column.name: place for place, column in enumerate(block.columns)}
    columns = list(block.columns)
    for policy in policies:
        if (place := places.get(policy.feature)) is None:
            continue
        statuses = block.statuses[place]
        missing = np.isin(statuses, (NULL, NOT_FOUND, NOT_YET_VALID))
        stale = statuses == STALE
        filled = np.zeros(len(statuses), np.bool_)
        for action, rows, failed in (
            (policy.missing, missing, missing_rows),
            (policy.stale, stale, stale_rows),
        ):
            if action == FAIL:
                failed.update(
                    (row, policy.feature) for row in np.flatnonzero(rows).tolist() if row not in failed
                )
            elif action == DEFAULT:
                filled |= rows
        if filled.any():
            columns[place] = _filled(columns[place], filled, policy.default)
    treated = replace(block, columns=tuple(columns), matrix=None)
    return Treated(treated, missing_rows, stale_rows)


def _filled(column: FeatureColumn, rows: Mask, default: Any) -> FeatureColumn:
    values: Array = column.values.copy()
    values[rows] = default
    return replace(column, values=values, valid=column.valid | rows)
