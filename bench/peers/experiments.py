"""Write the reference cases of the statistics of experiments, by gbstats 0.8.0 (GrowthBook's engine).

Run it in an environment of its own: `pip install gbstats==0.8.0`, then `python bench/peers/experiments.py`.
It writes tests/unit/monitor/gbstats_cases.json, which test_experiment_statistics.py there reads.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
from gbstats.models.statistics import (
    ProportionStatistic,
    RatioStatistic,
    RegressionAdjustedStatistic,
    SampleMeanStatistic,
    compute_theta,
)
from gbstats.utils import check_srm

TARGET = Path(__file__).resolve().parents[2] / "tests" / "unit" / "monitor" / "gbstats_cases.json"


def arms(rng: np.random.Generator, kind: str, n: int, m: int) -> list[dict[str, float]]:
    """Sums of both arms; multiples of 1/4, so that they are exact."""
    found = []
    for size, lift in ((n, 1.0), (m, 1.08)):
        d = rng.poisson(3, size) + 1.0
        if kind.startswith("adjusted"):
            d = np.round(rng.gamma(2.0, 10, size) * 4) / 4
        if kind == "adjusted proportion":
            values = (rng.uniform(size=size) < 0.1 * lift * d / 20).astype(float)
        elif kind == "adjusted mean":
            values = np.round(d * rng.uniform(0.5, 1.5 * lift, size) * 4) / 4
        elif kind == "proportion":
            values = (rng.uniform(size=size) < 0.12 * lift).astype(float)
        elif kind == "mean":
            values = np.round(rng.gamma(0.4, 30 * lift, size) * 4) / 4
        else:
            values = rng.binomial(d.astype(int), 0.2 * lift).astype(float)
        found.append(
            {
                "n": size,
                "m": values.sum(),
                "mm": (values**2).sum(),
                "d": d.sum(),
                "dd": (d**2).sum(),
                "md": (values * d).sum(),
            }
        )
    return found


def statistic(kind: str, arm: dict[str, float]) -> Any:
    n = int(arm["n"])
    if kind.startswith("adjusted"):
        pre = SampleMeanStatistic(n=n, sum=arm["d"], sum_squares=arm["dd"])
        return RegressionAdjustedStatistic(
            n=n,
            post_statistic=statistic(kind.removeprefix("adjusted "), arm),
            pre_statistic=pre,
            post_pre_sum_of_products=arm["md"],
            theta=0,
        )
    if kind == "proportion":
        return ProportionStatistic(n=n, sum=arm["m"])
    m = SampleMeanStatistic(n=n, sum=arm["m"], sum_squares=arm["mm"])
    if kind == "mean":
        return m
    d = SampleMeanStatistic(n=n, sum=arm["d"], sum_squares=arm["dd"])
    return RatioStatistic(n=n, m_statistic=m, d_statistic=d, m_d_sum_of_products=arm["md"])


def main() -> None:
    rng = np.random.default_rng(14)
    cases = []
    for kind in ("proportion", "mean", "ratio", "adjusted proportion", "adjusted mean"):
        for n, m in ((120, 140), (1_000, 250), (4_999, 5_003), (60_000, 61_000)):
            both = arms(rng, kind, n, m)
            for relative in (False, True):
                for alpha in (0.05, 0.01):
                    config = SequentialConfig(
                        alpha=alpha, difference_type="relative" if relative else "absolute"
                    )
                    pair = [statistic(kind, arm) for arm in both]
                    if kind.startswith("adjusted"):
                        pair[0].theta = pair[1].theta = compute_theta(*pair)
                    result = SequentialTwoSidedTTest(*pair, config).compute_result()
                    cases.append(
                        {
                            "kind": kind,
                            "control": both[0],
                            "treatment": both[1],
                            "relative": relative,
                            "alpha": alpha,
                            "difference": result.expected,
                            "standard_error": result.uplift.stddev,
                            "lower": result.ci[0],
                            "upper": result.ci[1],
                        }
                    )
    ratios = [
        {"subjects": subjects, "shares": shares, "p_value": check_srm(subjects, shares)}
        for subjects, shares in (
            ([500, 500], [0.5, 0.5]),
            ([5_200, 4_800], [0.5, 0.5]),
            ([9_130, 870], [0.9, 0.1]),
            ([10_000, 10_700], [1.0, 1.0]),
            ([0, 3], [0.5, 0.5]),
        )
    ]
    found = {"gbstats": version("gbstats"), "differences": cases, "sample_ratios": ratios}
    TARGET.write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
