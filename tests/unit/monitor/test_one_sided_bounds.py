"""One-sided bounds of means and rates, and the verdicts on the limits of a step that they give."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_monitor.comparison.bounds import Bounds
from flywheel_monitor.comparison.step_verdicts import LimitVerdict, StepCounts, StepLimits, step_verdicts
from flywheel_monitor.intervals.one_sided import exceeds_rate, half_width

RUNS, ALPHA = 1000, 0.05


def test_an_error_rate_at_its_limit_breaches_in_at_most_its_level() -> None:
    generator, breached = np.random.default_rng(16), 0
    for _ in range(RUNS):
        counts = np.cumsum(generator.random(4000) < 0.02)
        breached += any(exceeds_rate(int(counts[n - 1]), n, 0.02, ALPHA) for n in range(20, 4001, 20))
    assert breached <= ALPHA * RUNS


def test_an_error_rate_above_its_limit_is_found() -> None:
    generator, found = np.random.default_rng(18), 0
    for _ in range(100):
        counts = np.cumsum(generator.random(4000) < 0.06)
        found += exceeds_rate(int(counts[-1]), 4000, 0.02, ALPHA)
    assert found == 100


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_a_score_shift_at_its_limit_breaches_in_at_most_its_level(drift: float) -> None:
    """Scores of the challenger lie exactly `drift` standard deviations from those of the champion."""
    generator, breached = np.random.default_rng(19), 0
    limits = StepLimits(max_score_shift=drift or 1e-9, breach_alpha=ALPHA / 2, tightest_at=200)
    for _ in range(RUNS):
        champion, challenger = generator.normal(0, 1, 2000), generator.normal(drift, 1, 2000)
        means = [np.cumsum(scores) / np.arange(1, 2001) for scores in (champion, challenger)]
        for n in range(100, 2001, 100):
            shift = abs(means[1][n - 1] - means[0][n - 1]) / champion[:n].std()
            seen = StepCounts(
                score_shift=float(shift), champion_scored=n, challenger_scored=n, stddev_ratio=1.0
            )
            (verdict,) = step_verdicts(seen, limits)
            if verdict.verdict is LimitVerdict.BREACHED:
                breached += 1
                break
    assert breached <= ALPHA * RUNS


@pytest.mark.parametrize(
    ("rows", "level", "tightest", "expected"),
    # Howard et al. 2021, equation 14, with r = tightest / 8:
    # sqrt(2 (n + r) / n log(sqrt((n + r) / r) / (2 level) + 1)).
    [(500, 0.05, 200, 2.842), (500, 0.0125, 200, 3.310), (500, 0.05, 100, 2.926), (300, 0.05, 80, 2.889)],
)
def test_the_half_width_follows_its_formula(rows: int, level: float, tightest: int, expected: float) -> None:
    assert half_width(rows, level, tightest) == pytest.approx(expected, abs=1e-3)


def test_fewer_than_thirty_rows_prove_nothing() -> None:
    limits = StepLimits(max_loss_delta=0.0, max_score_shift=0.1)
    for rows, verdict in ((29, LimitVerdict.UNDECIDED), (30, LimitVerdict.BREACHED)):
        seen = StepCounts(
            loss=Bounds(1.0, error=1e-6),
            labelled=rows,
            score_shift=50.0,
            champion_scored=rows,
            challenger_scored=rows,
            stddev_ratio=1.0,
        )
        assert [verdict, verdict] == [found.verdict for found in step_verdicts(seen, limits)]
