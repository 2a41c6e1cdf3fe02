"""The model's input tensors for a batch of features, and the rows that get none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.scoring.feature_block import FeatureBlock
from flywheel_common.scoring.feature_policy import FeaturePolicy
from flywheel_common.scoring.input_tensors import TensorBuilder, Tensors
from flywheel_common.scoring.treated_features import treat

INPUT_NOT_EXACT = "INPUT_NOT_EXACT"
"""A tensor of the model cannot hold the value of a feature exactly, or has no null for it."""
FEATURE_STALE = "FEATURE_STALE"
"""A feature is stale, and the release's policy for it is FAIL."""
FEATURE_MISSING = "FEATURE_MISSING"
"""A feature has no value, and the release's policy for it is FAIL."""
BAD_SCORE = "BAD_SCORE"
"""The model returned a value that is not a finite number."""


class Refusal(NamedTuple):
    """Why a row cannot be scored: one of the reasons above, and a message."""

    reason: str
    message: str


class Prepared(NamedTuple):
    """`tensors` of the rows with the indices `rows` of the block. `refused`: every other row → why."""

    tensors: Tensors
    rows: Array
    refused: Mapping[int, Refusal]


def prepare(policies: Sequence[FeaturePolicy], builder: TensorBuilder, block: FeatureBlock) -> Prepared:
    """Applies the policies and builds the tensors. Raises MissingFeature."""
    treated = treat(policies, block)
    tensors, unfit = builder.build(treated.block)
    rows = np.arange(block.rows)
    if not (unfit or treated.missing or treated.stale):
        return Prepared(tensors, rows, {})
    refused = {row: Refusal(INPUT_NOT_EXACT, why) for row, why in unfit.items()}
    refused |= {row: Refusal(FEATURE_STALE, f"{name} is stale") for row, name in treated.stale.items()}
    refused |= {
        row: Refusal(FEATURE_MISSING, f"{name} has no value") for row, name in treated.missing.items()
    }
    rows = np.delete(rows, list(refused))
    return Prepared({name: tensor[rows] for name, tensor in tensors.items()}, rows, refused)
