"""False-discovery rate: Benjamini and Hochberg's step-up procedure (J. R. Stat. Soc. B 57, 1995)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel_common.arrays import Floats


def adjust(p_values: Sequence[float] | Floats) -> Floats:
    """[n] adjusted p-values: rejecting those <= q keeps the expected share of false rejections at most q."""
    p = np.asarray(p_values, np.float64)
    n = len(p)
    if n == 0:
        return p
    order = np.argsort(p, kind="stable")
    raised = p[order] * n / np.arange(1, n + 1)
    monotone = np.minimum.accumulate(raised[::-1])[::-1]
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(monotone, 1.0)
    return adjusted
