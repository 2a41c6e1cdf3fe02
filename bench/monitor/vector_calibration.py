"""How often verdicts on vectors are wrong: windows without drift that alarm, and shifts that are missed.

A window has one vector of 16 values in 2,000 rows against a profile of 50,000 rows, judged by its projections
as in the monitor (`drift.vectors`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bench import measure
from bench.monitor.calibration import BINS, BURN_IN, POLICY, PROFILE_ROWS, ROWS
from flywheel_common.arrays import Floats, Ints
from flywheel_common.projections import project
from flywheel_monitor.drift.features import judge_features
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.blocks import MAX_BLOCKS
from flywheel_monitor.windows.vectors import projection_name, with_projections

NAME, WIDTH = "v__embedding", 16
WINDOWS = 2_000
SHIFTED = 300
SHIFT = 0.5
"""Standard deviations that one of the values moves: 0.125 of a projection on average."""


def vectors(rho: float, rng: np.random.Generator, rows: int) -> Floats:
    """[rows, WIDTH] standard normal values, each correlated by rho with that of the row before."""
    values = rng.standard_normal((rows + BURN_IN, WIDTH))
    for at in range(1, len(values) if rho else 0):
        values[at] = rho * values[at - 1] + np.sqrt(1 - rho * rho) * values[at]
    return values[BURN_IN:]


def profile(rng: np.random.Generator) -> list[FeatureBins]:
    """The bins of the projections of PROFILE_ROWS vectors."""
    found = []
    for axis, x in enumerate(project(vectors(0.0, rng, PROFILE_ROWS), NAME).T):
        edges = np.unique(np.quantile(x, np.linspace(0, 1, BINS + 1)[1:-1]))
        counts = np.bincount(np.searchsorted(edges, x, side="left"), minlength=len(edges) + 1)
        column = ColumnReference(
            projection_name(NAME, axis),
            True,
            tuple(counts.tolist()),
            edges=tuple(edges.tolist()),
            mean=float(x.mean()),
            stddev=float(x.std()),
            minimum=float(x.min()),
            maximum=float(x.max()),
            vector=NAME,
            width=WIDTH,
            axis=axis,
        )
        found.append(FeatureBins(column))
    return found


def verdict(features: list[FeatureBins], values: Floats) -> Verdict:
    """The verdict on a window of vectors."""
    rows = len(values)
    valid, block = np.ones(rows, np.bool_), np.arange(rows) * MAX_BLOCKS // rows
    columns = with_projections({NAME: (values, valid)}, [bins.reference for bins in features])
    counts: dict[str, Ints] = {}
    blocks: dict[str, Ints] = {}
    shifts: dict[str, float] = {}
    for bins in features:
        x = columns[bins.name][0]
        places = block * bins.size + bins.assign(x, valid, rows)
        blocks[bins.name] = np.bincount(places, minlength=MAX_BLOCKS * bins.size).reshape(MAX_BLOCKS, -1)
        counts[bins.name] = blocks[bins.name].sum(axis=0)
        shifts[bins.name] = float(bins.standardized(x, valid, rows).mean())
    (found,) = judge_features(features, counts, shifts, POLICY, blocks)
    return found.verdict


def run(only: str) -> Iterable[measure.Row]:
    for rho in (0.0, 0.9):
        if only in f"false alarms AR({rho:g})":
            rng = np.random.default_rng(2028)
            features = profile(rng)
            alarms = sum(
                verdict(features, vectors(rho, rng, ROWS)) is not Verdict.NO_DRIFT for _ in range(WINDOWS)
            )
            what = f"windows of a vector without drift that alarm, AR({rho:g}), of {WINDOWS}"
            yield measure.row(what, 100 * alarms / WINDOWS, "%", measure.at_most(1.0, of_value=True))
    if only in "shift":
        yield _found()


def _found() -> measure.Row:
    """Series of three windows in which one value of the vector has moved and is found."""
    rng = np.random.default_rng(2029)
    features, found = profile(rng), 0
    for _ in range(SHIFTED):
        for _ in range(3):
            values = vectors(0.0, rng, ROWS)
            values[:, 0] += SHIFT
            if verdict(features, values) is not Verdict.NO_DRIFT:
                found += 1
                break
    what = f"shifts of one of {WIDTH} values by {SHIFT} sigma found in 3 windows of {ROWS} rows"
    return measure.row(what, 100 * found / SHIFTED, "%", measure.at_least(95.0, of_value=True))
