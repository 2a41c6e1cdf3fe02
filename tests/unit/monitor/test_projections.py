"""Drift of vectors by random projections, against numpy and scipy on the vectors themselves."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import stats

from flywheel_common.projections import PROJECTIONS, directions
from flywheel_common.signature import OutputKind
from flywheel_monitor.drift import psi
from flywheel_monitor.drift.projections import ProjectionDrift, projection_drift
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.projection import PROJECTION_BINS, STEPS, Projections

SEED = "projects/p/models/late/versions/3"


def vectors(rows: int, seed: int, shift: float = 0.0, width: int = 16) -> np.ndarray:
    """Correlated vectors far from the origin, one coordinate of which moves."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(rows, width)) @ np.linalg.qr(rng.normal(size=(width, width)))[0] + 3.0
    found[:, 2] += shift
    return found


def counted(projections: Projections, rows: np.ndarray, blocks: int = 1) -> np.ndarray:
    """[blocks, PROJECTIONS, PROJECTION_BINS]"""
    bins = projections.bins(rows)
    return np.stack(
        [
            np.stack([np.bincount(part[:, k], minlength=PROJECTION_BINS) for k in range(PROJECTIONS)])
            for part in np.array_split(bins, blocks)
        ]
    )


def expected_directions(seed: str, width: int) -> np.ndarray:
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    rows = np.random.default_rng(np.random.PCG64(first)).standard_normal(8 * width).reshape(8, width)
    return np.array([row / np.sqrt(np.sum(row * row)) for row in rows])


def test_directions_are_unit_vectors_that_the_version_fixes() -> None:
    found = directions(SEED, 16)
    np.testing.assert_allclose(found, expected_directions(SEED, 16), rtol=0, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-12)
    assert not np.array_equal(found, directions(SEED + "0", 16))


def test_bins_hold_the_projections_within_their_width() -> None:
    rows = vectors(2000, 1)
    projections = Projections.around(SEED, rows)
    projected = rows @ expected_directions(SEED, 16).T
    np.testing.assert_allclose(projections.centers, np.median(projected, axis=0), rtol=1e-12)
    low, high = np.quantile(projected, [0.25, 0.75], axis=0)
    np.testing.assert_allclose(projections.scales, (high - low) / 1.349, rtol=1e-12)
    middle = (projections.bins(rows) - (PROJECTION_BINS - 1) // 2) / STEPS
    back = np.array(projections.centers) + np.array(projections.scales) * np.sinh(middle)
    width = np.array(projections.scales) * np.cosh(middle) / STEPS
    assert (np.abs(back - projected) <= 0.51 * width).all()


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_statistics_are_the_largest_over_the_projections(shift: float) -> None:
    first, window = vectors(4000, 1), vectors(3000, 2, shift)
    projections = Projections.around(SEED, first)
    reference = counted(projections, first)[0]
    found = projection_drift(counted(projections, window), reference)
    ours, theirs = projections.bins(window), projections.bins(first)
    tests = [stats.ks_2samp(ours[:, k], theirs[:, k], method="asymp") for k in range(PROJECTIONS)]
    assert max(t.statistic for t in tests) == pytest.approx(found.ks, abs=1e-12)
    asymptotic = [stats.kstwobign.sf(t.statistic * np.sqrt(3000 * 4000 / 7000)) for t in tests]
    assert min(1.0, PROJECTIONS * min(asymptotic)) == pytest.approx(found.p_value, abs=1e-9)
    # Deciles of the rows themselves differ from those of the bins by less than a bin.
    by_rows = []
    for direction in expected_directions(SEED, 16):
        edges = np.quantile(first @ direction, np.linspace(0.1, 0.9, 9))
        sides = [
            np.bincount(np.searchsorted(edges, side @ direction), minlength=10) for side in (window, first)
        ]
        by_rows.append(psi.corrected(*sides))
    assert max(by_rows) == pytest.approx(found.psi, abs=0.01 + 0.1 * max(by_rows))
    exact = max(stats.ks_2samp(window @ d, first @ d).statistic for d in expected_directions(SEED, 16))
    assert exact == pytest.approx(found.ks, abs=0.03)


def test_a_rotation_that_keeps_the_norms_is_found() -> None:
    rng = np.random.default_rng(3)
    first = rng.normal(size=(4000, 8)) * np.array([5.0] + [0.5] * 7)
    turned = first @ np.roll(np.eye(8), 1, axis=0)
    norms = [np.linalg.norm(side, axis=1) for side in (first, turned)]
    np.testing.assert_allclose(*norms)
    projections = Projections.around(SEED, first)
    found = projection_drift(counted(projections, turned), counted(projections, first)[0])
    assert found.drifted(0.01, 0.2)


def test_equal_distributions_drift_as_rarely_as_the_level_says() -> None:
    first = vectors(5000, 1, width=8)
    # The first window as well as the others are samples of one distribution: draw them from a pool.
    pool = vectors(200_000, 1, width=8)
    projections = Projections.around(SEED, pool)
    rng = np.random.default_rng(4)
    significant = large = 0
    for _ in range(300):
        window, other = pool[rng.integers(0, len(pool), 1500)], pool[rng.integers(0, len(pool), 5000)]
        found = projection_drift(counted(projections, window, 20), counted(projections, other)[0])
        significant += found.p_value <= 0.05
        large += found.drifted(0.01, 0.2)
    assert significant <= 15 + 3 * np.sqrt(15) and 0 == large
    assert len(first)


def test_missing_rows_are_no_drift() -> None:
    reference = np.zeros((PROJECTIONS, PROJECTION_BINS), np.int64)
    assert ProjectionDrift() == projection_drift(reference[None], reference + 1)
    assert ProjectionDrift() == projection_drift(reference[None] + 1, reference)


def test_a_constant_vector_and_one_row_have_bins() -> None:
    for rows in (np.zeros((3, 4)), np.ones((1, 4)), np.full((5, 4), 1e9)):
        projections = Projections.around(SEED, rows)
        assert (projections.bins(rows) == (PROJECTION_BINS - 1) // 2).all()
    far = Projections.around(SEED, np.zeros((2, 4)))
    assert {0, PROJECTION_BINS - 1} >= set(far.bins(np.full((1, 4), 1e12)).ravel().tolist())


def test_only_vectors_have_projections_and_they_read_back() -> None:
    rows = vectors(50, 1)
    output = Output(OutputKind.VECTOR, 16).projecting(rows, SEED)
    assert output.projections is not None and output == Output.from_json(output.to_json())
    old = {k: v for k, v in output.to_json().items() if k != "projections"}
    assert Output.from_json(old).projections is None
    assert Output().projecting(rows[:, :1], SEED).projections is None
    assert Output(OutputKind.VECTOR, 16).projecting(np.full((2, 16), np.nan), SEED).projections is None
