"""The statistics of the columns of a window against their reference, computed for all columns at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import chi_square as chi2
from flywheel_monitor.drift import distances, ks, psi
from flywheel_monitor.drift.bin_matrix import BinMatrix, Sample, matrices_of
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.windows.bins import FeatureBins

T = TypeVar("T")


@dataclass(frozen=True)
class FeatureDrift:
    """Statistics and verdict of one feature of one window; see `FeatureDrift` of the API."""

    feature: str
    psi: float = 0.0
    psi_corrected: float = 0.0
    ks: float | None = None
    ks_p_value: float | None = None
    chi_square: float | None = None
    chi_square_degrees: int = 0
    chi_square_p_value: float | None = None
    cramers_v: float | None = None
    jensen_shannon: float = 0.0
    wasserstein: float | None = None
    effective_rows: float = 0.0
    adjusted_p_value: float = 1.0
    mean_shift: float | None = None
    null_rate: float = 0.0
    reference_null_rate: float = 0.0
    unseen_rate: float = 0.0
    reference_unseen_rate: float = 0.0
    verdict: Verdict = Verdict.NO_DRIFT
    reason: str = ""
    cause: str = ""
    silenced: bool = False
    projection_shift: float | None = None
    mean_shift_z: float | None = None
    psi_epsilon: float | None = None


def measure(
    bins: FeatureBins,
    counts: Ints,
    mean_shift: float | None,
    blocks: Ints | None = None,
    reference_blocks: Ints | None = None,
) -> tuple[FeatureDrift, float]:
    """`measure_columns` of one column."""
    parts, against = (None if rows is None else [rows] for rows in (blocks, reference_blocks))
    (found,) = measure_columns([bins], [counts], [mean_shift], parts, against)
    return found


def measure_columns(
    features: Sequence[FeatureBins],
    counts: Sequence[Ints],
    mean_shifts: Sequence[float | None],
    blocks: Sequence[Ints] | None = None,
    reference_blocks: Sequence[Ints] | None = None,
) -> list[tuple[FeatureDrift, float]]:
    """The statistics of each column and its p-value before adjustment.

    Numeric: KS of the finite values and chi-square of present against missing and out of range, the
    smaller p doubled (Bonferroni), so that a null burst is as significant as a shift. Categorical:
    chi-square over all bins. `blocks` [B, size] of each: the counts of consecutive parts of the window, from
    which the design effect is estimated; None: rows are independent. `reference_blocks` are those of another
    window, which the counts are compared with in place of the training set."""
    found: list[tuple[FeatureDrift, float]] = [(FeatureDrift(""), 1.0)] * len(features)
    for numbers, matrix in matrices_of(tuple(features)):
        window = matrix.sample(_of(numbers, counts), None if blocks is None else _of(numbers, blocks))
        reference = matrix.reference
        if reference_blocks is not None:
            earlier = _of(numbers, reference_blocks)
            reference = matrix.sample([rows.sum(axis=0) for rows in earlier], earlier)
        columns: dict[str, list[Any]] = {
            "feature": [features[n].name for n in numbers],
            **_shares(window, reference),
        }
        if matrix.numeric:
            more, p_values = _numbers(matrix, window, reference, _of(numbers, mean_shifts))
        else:
            more, p_values = _categories(window, reference)
        columns |= more
        rows = zip(*columns.values(), strict=True)
        for n, row, p in zip(numbers, rows, p_values, strict=True):
            found[n] = FeatureDrift(**dict(zip(columns, row, strict=True))), p
    return found


def _of(numbers: Sequence[int], values: Sequence[T]) -> list[T]:
    return [values[n] for n in numbers]


def _shares(window: Sample, reference: Sample) -> dict[str, list[Any]]:
    """Statistics that all columns have."""
    a, b = window.coarse, reference.coarse
    found = {
        "psi": psi.psi(a, b),
        "psi_epsilon": psi.psi(a, b, psi.Smoothing.EPSILON),
        "psi_corrected": psi.corrected(a, b, window.effect, reference.effect),
        "jensen_shannon": distances.jensen_shannon(a, b),
        "null_rate": window.null_rates,
        "reference_null_rate": reference.null_rates,
        "unseen_rate": window.unseen_rates,
        "reference_unseen_rate": reference.unseen_rates,
        "effective_rows": window.rows / window.effect,
    }
    return {name: values.tolist() for name, values in found.items()}


def _categories(window: Sample, reference: Sample) -> tuple[dict[str, list[Any]], list[float]]:
    """Further statistics of categorical columns, and their p-values."""
    pooled = chi2.pooled(window.tested, reference.tested)
    test = chi2.chi_square(*pooled, window.effect, reference.effect)
    p_values = test.p_value.tolist()
    return {
        "chi_square": test.statistic.tolist(),
        "chi_square_degrees": test.degrees.tolist(),
        "chi_square_p_value": p_values,
        "cramers_v": test.cramers_v.tolist(),
    }, p_values


def _numbers(
    matrix: BinMatrix, window: Sample, reference: Sample, mean_shifts: list[float | None]
) -> tuple[dict[str, list[Any]], list[float]]:
    """Further statistics of numeric columns, and their p-values."""
    a, b = window.tested, reference.tested
    n, m = window.present / window.effect, reference.present / reference.effect
    statistic = ks.ks_statistic(a, b)
    ks_p = ks.ks_p_value(statistic, n, m)
    pooled = chi2.pooled(window.kinds, reference.kinds)
    kinds = chi2.chi_square(*pooled, window.kind_effect, reference.kind_effect)
    moved = distances.wasserstein(a, b, matrix.positions)
    spreads = matrix.spreads.tolist()
    return {
        "ks": statistic.tolist(),
        "ks_p_value": ks_p.tolist(),
        "wasserstein": [w / s if s > 0 else None for w, s in zip(moved.tolist(), spreads, strict=True)],
        "mean_shift": mean_shifts,
        "mean_shift_z": list(map(_mean_z, mean_shifts, n.tolist(), m.tolist())),
    }, np.minimum(1.0, 2 * np.minimum(ks_p, kinds.p_value)).tolist()


def _mean_z(mean_shift: float | None, n: float, m: float) -> float | None:
    """The shift of the mean over its standard error without drift, when both sides have the standard
    deviation of the reference."""
    if mean_shift is None or not (n > 0 and m > 0):
        return None
    return mean_shift / math.sqrt(1 / n + 1 / m)
