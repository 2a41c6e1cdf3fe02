"""Rows for the prediction log: the only place that builds `LogRows` from answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats
from flywheel_common.scoring.feature_block import FeatureBlock
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.releases.rollout_step import RolloutStep
from flywheel_inference.requests.request import RoutedRequest
from flywheel_inference.scoring.scorer import ReleaseScorer


def log_rows(
    scorer: ReleaseScorer,
    requests: list[RoutedRequest],
    *,
    role: int,
    step: RolloutStep,
    block: FeatureBlock | None,
    values: Floats,
    decisions: npt.NDArray[np.bool_],
    sources: npt.NDArray[np.uint8],
    latencies_ms: npt.NDArray[np.float32],
    reasons: Sequence[str] = (),
    cost: float | None = None,
) -> LogRows:
    """Rows of one release in one role; `values` [rows, width]. The requests have one contract, which is not
    the release's when they lack what the release needs. `block`: features of the requests; None: none were
    read. `cost`: of each answer; None: not measured."""
    contract = requests[0].contract
    return LogRows(
        spec=scorer.spec,
        contract=contract,
        step=step,
        role=role,
        feature_set=block.feature_set if block is not None else contract.feature_set,
        requests=requests,
        features=scorer.tensors.served(block) if block is not None else None,
        values=values,
        decisions=decisions,
        sources=sources,
        latencies_ms=latencies_ms,
        reasons=list(reasons),
        costs=np.full(len(requests), cost, np.float32) if cost is not None else None,
        applied=block.applied if block is not None else (),
        not_yet_valid=block.not_yet_valid() if block is not None else (),
    )
