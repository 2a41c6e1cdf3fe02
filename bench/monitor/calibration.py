"""How often drift verdicts are wrong: windows without drift that alarm, and shifts that are missed.

Each window has 20 features of 2,000 rows against a profile of 50,000 rows. A window alarms when its verdict
is anything but NO_DRIFT. The statistics run as in the monitor: bins, blocks, moments, `judge_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from bench import measure
from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.drift.features import judge_features, judge_window
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.blocks import MAX_BLOCKS

WINDOWS = 10_000
SHIFTED = 300
"""Series of three windows with a shift."""
FEATURES = 20
ROWS = 2_000
PROFILE_ROWS = 50_000
BINS = 128
CATEGORIES = 100
SHIFT = 0.3
EFFECTIVE_ROWS = 1_000
BURN_IN = 200
POLICY = MonitorPolicy()
Draw = Callable[[np.random.Generator, int], Floats]
"""(generator, rows) → [FEATURES, rows] values; NaN is null."""


def correlated(rho: float) -> Draw:
    """Standard normal values, each correlated with the one before by rho: an AR(1) process."""

    def draw(rng: np.random.Generator, rows: int) -> Floats:
        noise = rng.standard_normal((FEATURES, rows + BURN_IN))
        series: Floats = lfilter([np.sqrt(1 - rho * rho)], [1, -rho], noise, axis=1)
        return series[:, BURN_IN:]

    return draw


def with_nulls(rng: np.random.Generator, rows: int) -> Floats:
    values = rng.standard_normal((FEATURES, rows))
    values[rng.random(values.shape) < 0.002] = np.nan
    return values


def with_outlier(rng: np.random.Generator, rows: int) -> Floats:
    values = rng.standard_normal((FEATURES, rows))
    if rows == ROWS:
        values[:, rng.integers(rows)] = 1e6
    return values


def categories(rng: np.random.Generator, rows: int) -> Floats:
    """Zipf's law: the rarest of 100 categories has 0.2 % of the rows."""
    shares = 1 / np.arange(1, CATEGORIES + 1)
    return rng.choice(CATEGORIES, size=(FEATURES, rows), p=shares / shares.sum()).astype(np.float64)


SCENARIOS: dict[str, tuple[Draw, bool]] = {
    "independent rows": (correlated(0.0), True),
    "AR(0.5)": (correlated(0.5), True),
    "AR(0.9)": (correlated(0.9), True),
    "0.2 % nulls": (with_nulls, True),
    "one outlier": (with_outlier, True),
    "100 categories": (categories, False),
}
"""Name → (values, numeric)."""


@dataclass(frozen=True)
class Watch:
    """The bins of the features, and whether their values are numbers."""

    features: list[FeatureBins]
    numeric: bool

    def verdicts(self, values: Floats) -> tuple[Verdict, list[Verdict]]:
        """Verdicts on a window [FEATURES, rows] as a whole, and on each feature."""
        rows = values.shape[1]
        block = np.arange(rows) * MAX_BLOCKS // rows
        counts: dict[str, Ints] = {}
        blocks: dict[str, Ints] = {}
        shifts: dict[str, float] = {}
        for bins, x in zip(self.features, values, strict=True):
            valid = ~np.isnan(x)
            column = x if self.numeric else x.astype(np.int64)
            places = block * bins.size + bins.assign(column, valid, rows)
            blocks[bins.name] = np.bincount(places, minlength=MAX_BLOCKS * bins.size).reshape(MAX_BLOCKS, -1)
            counts[bins.name] = blocks[bins.name].sum(axis=0)
            if self.numeric:
                shifts[bins.name] = float(bins.standardized(x, valid, rows).sum() / valid.sum())
        judged = judge_features(self.features, counts, shifts, POLICY, blocks)
        by_name = {d.feature: d.verdict for d in judged}
        return judge_window(judged, rows, POLICY)[0], [by_name[b.name] for b in self.features]


def watch(draw: Draw, numeric: bool, rng: np.random.Generator) -> Watch:
    """Bins from profiles of PROFILE_ROWS rows."""
    profile = draw(rng, PROFILE_ROWS)
    columns = [_numeric if numeric else _categorical] * FEATURES
    return Watch(
        [FeatureBins(of(f"v__f{i:02}", x)) for i, (of, x) in enumerate(zip(columns, profile, strict=True))],
        numeric,
    )


def _numeric(name: str, values: Floats) -> ColumnReference:
    present = values[~np.isnan(values)]
    edges = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, present, side="left"), minlength=len(edges) + 1)
    return ColumnReference(
        name,
        True,
        tuple(counts.tolist()),
        null_count=len(values) - len(present),
        edges=tuple(edges.tolist()),
        mean=float(present.mean()),
        stddev=float(present.std()),
        minimum=float(present.min()),
        maximum=float(present.max()),
    )


def _categorical(name: str, values: Floats) -> ColumnReference:
    counts = np.bincount(values.astype(np.int64), minlength=CATEGORIES)
    names = tuple(str(i) for i in range(CATEGORIES))
    return ColumnReference(name, False, tuple(counts.tolist()), categories=names)


def run(only: str) -> Iterable[measure.Row]:
    for name, (draw, numeric) in SCENARIOS.items():
        if only in f"false alarms {name}":
            rng = np.random.default_rng(2026)
            watched = watch(draw, numeric, rng)
            alarms = sum(watched.verdicts(draw(rng, ROWS))[0] is not Verdict.NO_DRIFT for _ in range(WINDOWS))
            what = f"windows without drift that alarm, {name}, of {WINDOWS}"
            yield measure.row(what, 100 * alarms / WINDOWS, "%", measure.at_most(1.0, of_value=True))
    for rho in (0.0, 0.5, 0.9):
        if only in f"shift AR({rho:g})":
            yield _found(rho)


def _found(rho: float) -> measure.Row:
    """Series of three windows in which one feature has moved and is found."""
    rng = np.random.default_rng(2027)
    draw = correlated(rho)
    watched = watch(draw, True, rng)
    rows = round(EFFECTIVE_ROWS * (1 + rho) / (1 - rho))
    found = 0
    for _ in range(SHIFTED):
        for _ in range(3):
            values = draw(rng, rows)
            values[7] += SHIFT
            if watched.verdicts(values)[1][7] is not Verdict.NO_DRIFT:
                found += 1
                break
    what = f"shifts of {SHIFT} sigma found in 3 windows of {rows} rows, AR({rho:g})"
    return measure.row(what, 100 * found / SHIFTED, "%", measure.at_least(95.0, of_value=True))
