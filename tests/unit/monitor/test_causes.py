"""Named causes of bad data: each concerns its own feature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from flywheel_monitor.drift.causes import Cause, cause_of
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins, Special
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import Rows
from flywheel_monitor.windows.span import Span

N = 1000
RNG = np.random.default_rng(0)
USUAL = RNG.normal(20.0, 5.0, 20_000)
EDGES = np.quantile(USUAL, np.linspace(0, 1, 21)[1:-1])
COUNTS = np.bincount(np.searchsorted(EDGES, USUAL), minlength=20)


def number(name: str) -> ColumnReference:
    return ColumnReference(
        name,
        True,
        tuple(COUNTS.tolist()),
        edges=tuple(EDGES.tolist()),
        mean=float(USUAL.mean()),
        stddev=float(USUAL.std()),
        minimum=float(USUAL.min()),
        maximum=float(USUAL.max()),
    )


COLUMNS = (number("a"), number("b"), ColumnReference("c", False, (50, 50), categories=("x", "y")))
LAYOUT = Layout.of(COLUMNS)
VERSION = WatchedVersion(1, "v", 1, "m", Reference(COLUMNS), LAYOUT)


def report(late: int = 0, **features: Any) -> Report:
    """The report on a window whose features are as usual but for these values (or values and validity)."""
    every = np.ones(N, np.bool_)
    usual: dict[str, Any] = {
        "a": RNG.normal(20.0, 5.0, N),
        "b": RNG.normal(20.0, 5.0, N),
        "c": np.array(["x", "y"] * (N // 2), object),
    }
    given = {name: v if isinstance(v, tuple) else (v, every) for name, v in (usual | features).items()}
    panes = PaneAccumulator(LAYOUT, 60_000_000)
    scores = np.full(N, 0.5)
    panes.add_rows(
        Rows(
            np.zeros(N, np.int64),
            scores,
            scores[:, None],
            ~every,
            np.ones(N, np.int64),
            scores,
            scores,
            ~every,
            ("",) * N,
            given,
        )
    )
    window = sum_panes(LAYOUT, [(k.start_us, p) for k, p in panes.merge({}).items()])
    return report_on(VERSION, Span(0, 60_000_000), window, Quality(), MonitorPolicy(), late)


def of(found: Report, name: str) -> FeatureDrift:
    return next(f for f in found.features if f.feature == name)


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("NULL_BURST", {"a": (RNG.normal(20, 5, N), np.arange(N) % 2 == 0)}),
        ("NULL_BURST", {"a": np.where(np.arange(N) % 3 == 0, np.nan, RNG.normal(20, 5, N))}),
        ("SCHEMA_CHANGE", {"a": np.array(["20"] * N, object)}),
        ("FROZEN_FEATURE", {"a": np.full(N, 21.3)}),
        ("FROZEN_FEATURE", {"a": np.full(N, float(USUAL.mean()))}),
        ("UNIT_CHANGE", {"a": RNG.normal(20, 5, N) * 1000}),
        ("UNIT_CHANGE", {"a": RNG.normal(20, 5, N) * 3.6}),
        ("UNIT_CHANGE", {"a": RNG.normal(20, 5, N) / 10}),
    ],
)
def test_a_cause_is_named_and_concerns_its_feature_only(cause: str, changes: dict[str, Any]) -> None:
    found = report(**changes, b=RNG.normal(26, 5, N))
    assert (Verdict.DATA_QUALITY, cause) == (of(found, "a").verdict, of(found, "a").cause)
    assert (Verdict.DRIFT, "") == (of(found, "b").verdict, of(found, "b").cause)
    assert (Verdict.NO_DRIFT, "") == (of(found, "c").verdict, of(found, "c").cause)
    assert [cause] == found.causes


def test_a_new_category_is_named() -> None:
    found = report(c=np.array(["x", "z"] * (N // 2), object), b=RNG.normal(26, 5, N))
    assert (Verdict.DATA_QUALITY, "NEW_CATEGORY") == (of(found, "c").verdict, of(found, "c").cause)
    assert (Verdict.NO_DRIFT, Verdict.DRIFT) == (of(found, "a").verdict, of(found, "b").verdict)
    assert ["NEW_CATEGORY"] == found.causes


def test_a_category_that_all_rows_have_is_a_frozen_feature() -> None:
    found = report(c=np.full(N, "x", object), b=RNG.normal(26, 5, N))
    assert (Verdict.DATA_QUALITY, "FROZEN_FEATURE") == (of(found, "c").verdict, of(found, "c").cause)
    assert (Verdict.NO_DRIFT, Verdict.DRIFT) == (of(found, "a").verdict, of(found, "b").verdict)
    assert ["FROZEN_FEATURE"] == found.causes


@pytest.mark.parametrize(
    ("others", "rows", "frozen"),
    [(0.001, 1_000, False), (0.001, 30_000, True), (0.2, 50, False), (0.2, 200, True)],
)
def test_a_usual_category_is_frozen_only_if_chance_does_not_explain_it(
    others: float, rows: int, frozen: bool
) -> None:
    known = round(others * 100_000)
    listed = ColumnReference("c", False, (100_000 - known, known), categories=("x", "y"))
    rest = ColumnReference("c", False, (100_000 - known,), categories=("x",), other_count=known)
    for bins in map(FeatureBins, (listed, rest)):
        counts = np.zeros(bins.size, np.int64)
        counts[0] = rows
        found = cause_of(bins, counts, None, 0.2)
        assert (Cause.FROZEN_FEATURE if frozen else None) == (found and found[0])
        assert cause_of(bins, counts, None, 0.2, counts) is None, "as frozen as in the second reference"
        counts[1 if bins.regular > 1 else bins.regular + Special.UNSEEN] = 1
        assert cause_of(bins, counts, None, 0.2) is None


@pytest.mark.parametrize(
    ("ones", "rows", "frozen"),
    [(0.005, 100, False), (0.005, 1_000, False), (0.005, 10_000, True), (0.2, 50, False), (0.2, 200, True)],
)
def test_equal_values_are_frozen_only_if_chance_does_not_explain_them(
    ones: float, rows: int, frozen: bool
) -> None:
    """A flag that is rarely 1: a window without any 1 has the probability (1 - ones) ** rows."""
    known = round(ones * 100_000)
    flag = ColumnReference(
        "f",
        True,
        (100_000 - known, known),
        edges=(0.5,),
        mean=ones,
        stddev=math.sqrt(ones * (1 - ones)),
        minimum=0.0,
        maximum=1.0,
    )
    bins = FeatureBins(flag)
    counts = np.zeros(bins.size, np.int64)
    counts[0] = rows
    moments = -flag.mean / flag.stddev, 0.0
    expected = Cause.FROZEN_FEATURE if frozen else None
    found = cause_of(bins, counts, moments, 0.2)
    assert expected == (found and found[0])
    earlier = np.zeros(bins.size, np.int64)
    earlier[:2] = 50_000 - known // 2, known // 2
    again = cause_of(bins, counts, moments, 0.2, earlier)
    assert expected == (again and again[0])


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(20, 5, N),
        RNG.normal(35, 5, N),
        RNG.normal(20, 15, N),
        RNG.normal(20, 1, N),
        np.round(RNG.normal(20, 0.1, N)) + np.arange(N) % 2,
    ],
)
def test_a_shift_or_another_spread_is_drift_and_no_bad_data(values: np.ndarray) -> None:
    assert (Verdict.DATA_QUALITY, "") != (of(report(a=values), "a").verdict, "")
    assert [] == report(a=values).causes


def test_many_late_predictions_are_a_clock_jump() -> None:
    assert ([], ["CLOCK_JUMP"]) == (report(late=200).causes, report(late=201).causes)
