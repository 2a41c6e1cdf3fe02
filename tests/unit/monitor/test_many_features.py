"""The statistics of many features, which are computed together, against those of each feature alone."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flywheel_monitor.drift import design_effect, psi
from flywheel_monitor.drift.statistics import FeatureDrift, measure, measure_columns
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins, Special

FEW = st.integers(0, 30)


@st.composite
def columns(draw: st.DrawFn, number: int) -> FeatureBins:
    """A numeric or categorical feature with up to 40 bins, some of them empty."""
    name, size = f"v__f{number}", draw(st.integers(1, 40))
    counts = tuple(draw(st.lists(FEW, min_size=size, max_size=size)))
    missing, other = draw(FEW) + 1, draw(FEW)
    if draw(st.booleans()):
        return FeatureBins(
            ColumnReference(name, False, counts, missing, (), tuple(map(str, range(size))), other)
        )
    edges = tuple(np.arange(size - 1, dtype=np.float64).tolist())
    return FeatureBins(
        ColumnReference(
            name,
            True,
            counts,
            missing,
            edges,
            mean=size / 2,
            stddev=draw(st.sampled_from([0.0, 2.5])),
            minimum=-1.0,
            maximum=float(size),
        )
    )


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[FeatureBins], list[np.ndarray], list[np.ndarray]]:
    """Features, and their counts in the blocks of a window and of an earlier one; some blocks are empty."""
    features = [draw(columns(number)) for number in range(draw(st.integers(1, 6)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sides = []
    for blocks in (draw(st.integers(1, 20)), draw(st.integers(1, 20))):
        rows = rng.choice([0, 3, 200], blocks)
        sides.append([rng.multinomial(rows, rng.dirichlet(np.full(f.size, 0.4))) for f in features])
    return features, sides[0], sides[1]


def numbers(measured: tuple[FeatureDrift, float]) -> list[float]:
    """All numbers of a feature, NaN for None."""
    found, p_value = measured
    fields = [math.nan if each is None else each for each in astuple(found)]
    return [p_value, *(each for each in fields if isinstance(each, int | float))]


@given(windows(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_features_together_have_the_statistics_of_each_alone(
    drawn: tuple[list[FeatureBins], list[np.ndarray], list[np.ndarray]], against_earlier: bool
) -> None:
    features, blocks, earlier = drawn
    counts = [rows.sum(axis=0) for rows in blocks]
    shifts = [0.25 if bins.numeric else None for bins in features]
    together = measure_columns(features, counts, shifts, blocks, earlier if against_earlier else None)
    assert [found.feature for found, _ in together] == [bins.name for bins in features]
    for i, bins in enumerate(features):
        other = earlier[i] if against_earlier else None
        alone = measure(bins, counts[i], shifts[i], blocks[i], other)
        assert numbers(together[i]) == pytest.approx(numbers(alone), rel=1e-12, abs=1e-12, nan_ok=True)


@given(windows())
@settings(max_examples=150, deadline=None)
def test_statistics_of_many_features_equal_scipy(
    drawn: tuple[list[FeatureBins], list[np.ndarray], list[np.ndarray]],
) -> None:
    features, blocks, _ = drawn
    counts = [rows.sum(axis=0) for rows in blocks]
    measured = measure_columns(features, counts, [None] * len(features))
    for bins, window, (found, _) in zip(features, counts, measured, strict=True):
        reference = bins.reference_counts
        special = window[bins.regular :]
        if bins.numeric:
            order = [bins.regular + Special.BELOW, *range(bins.regular), bins.regular + Special.ABOVE]
            places = np.arange(len(order))
            a, b = (np.repeat(places, side[order]) for side in (window, reference))
            if len(a) and len(b):
                expected = stats.ks_2samp(a, b, method="asymp").statistic
                assert found.ks == pytest.approx(expected, rel=1e-9, abs=1e-9)
                if bins.reference.stddev:
                    apart = stats.wasserstein_distance(*(bins.positions[side] for side in (a, b)))
                    assert found.wasserstein == pytest.approx(apart / 2.5, rel=1e-9, abs=1e-9)
        missing = special[[Special.NULL, Special.NON_FINITE, Special.MALFORMED]].sum()
        assert found.null_rate == pytest.approx(missing / max(1, window.sum()))
        groups = psi.coarse(bins, window), psi.coarse(bins, reference)
        assert found.psi == pytest.approx(jeffreys(*groups), rel=1e-9, abs=1e-9)


def jeffreys(window: np.ndarray, reference: np.ndarray) -> float:
    if not window.any() or not reference.any():
        return 0.0
    used = (window + reference) > 0
    p, q = ((side[used] + 0.5) / (side.sum() + 0.5 * used.sum()) for side in (window, reference))
    return float(sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True)))


@given(st.integers(0, 2**32), st.integers(8, 20), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_blocks_without_rows_do_not_change_the_design_effect(seed: int, blocks: int, empty: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(rng.integers(1, 300, blocks), rng.dirichlet(np.ones(5)))
    at = np.sort(rng.integers(0, blocks + 1, empty))
    with_gaps = np.insert(counts, at, 0, axis=0)
    n, share = counts.sum(), counts.sum(axis=0) / counts.sum()
    excess = counts - counts.sum(axis=1, keepdims=True) * share
    steps = sum(float(((after - before) ** 2).sum()) for before, after in pairwise(excess))
    degrees = 2 / 3 * (blocks - 1)
    variance = steps / 2 * blocks / (blocks - 1) / n**2 / (float((share * (1 - share)).sum()) / n)
    expected = max(1.0, variance * degrees / stats.chi2.ppf(0.1, degrees))
    found = design_effect.of_shares(np.stack([with_gaps, with_gaps], axis=1))
    assert found == pytest.approx([expected, expected], rel=1e-9)
