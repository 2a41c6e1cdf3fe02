"""The check that subjects were divided as declared."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.special import chdtrc


def sample_ratio_p_value(subjects: Sequence[int], shares: Sequence[float]) -> float:
    """p-value of Pearson's chi-square test (1900) that the arms have subjects in the ratio of their shares.

    A small one is a sample ratio mismatch (Fabijan et al. 2019, "Diagnosing sample ratio mismatch in online
    controlled experiments"). 1 without subjects."""
    total, weights = sum(subjects), sum(shares)
    if not total:
        return 1.0
    statistic = 0.0
    for found, share in zip(subjects, shares, strict=True):
        expected = total * share / weights
        statistic += (found - expected) ** 2 / expected
    return float(chdtrc(len(subjects) - 1, statistic))
