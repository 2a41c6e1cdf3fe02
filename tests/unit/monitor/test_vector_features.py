"""Features that are vectors: counted by their projections and judged like other features."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import stats

from flywheel_common.projections import directions, project
from flywheel_monitor.drift.season import confirm_against
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import report_on
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.grpc.references import column_references
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import Rows
from flywheel_monitor.windows.span import Span
from flywheel_protos.feature.v1.training_set_pb2 import ColumnProfile
from flywheel_protos.types.v1 import value_pb2

NAME, WIDTH = "v__embedding", 12
POLICY = MonitorPolicy(min_predictions=100)


def unit_vectors(seed: str, width: int) -> np.ndarray:
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    rows = np.random.default_rng(np.random.PCG64(first)).standard_normal(8 * width).reshape(8, width)
    return np.array([row / np.sqrt(np.sum(row * row)) for row in rows])


AXES = unit_vectors(NAME, WIDTH)


def vectors(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated vectors, one coordinate of which moves."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, WIDTH)))[0]
    found = (rng.normal(size=(rows, WIDTH)) * np.linspace(0.5, 2, WIDTH)) @ mix + 3.0
    found[:, 2] += shift
    return found.astype(np.float32)


TRAINING = vectors(20_000, 1)


def profile(training: np.ndarray, nulls: int = 0) -> ColumnProfile:
    """The profile of a vector column, computed with numpy."""
    axes = []
    for x in (training.astype(np.float64) @ AXES.T).T:
        ordered = np.sort(x)
        edges = ordered[len(x) * np.arange(1, 128) // 128]
        counts, _ = np.histogram(-x, bins=np.concatenate([[-np.inf], -edges[::-1], [np.inf]]))
        axes.append(
            ColumnProfile(
                data_type=value_pb2.DATA_TYPE_FLOAT64,
                null_count=nulls,
                mean=x.mean(),
                stddev=x.std(),
                min=x.min() - 1e-6,
                max=x.max() + 1e-6,
                edges=edges,
                bin_counts=counts[::-1],
            )
        )
    return ColumnProfile(
        name=NAME, data_type=value_pb2.DATA_TYPE_FLOAT32_VECTOR, vector_size=WIDTH, projections=axes
    )


def version_of(found: ColumnProfile) -> WatchedVersion:
    columns = tuple(column_references([found], {NAME}))
    model = "projects/p/models/m"
    return WatchedVersion(1, f"{model}/versions/1", 1, model, Reference(columns), Layout.of(columns))


def window(
    version: WatchedVersion, values: np.ndarray, valid: np.ndarray | None = None, parts: int = 1
) -> WindowCounts:
    """The counts of the vectors, which are given in some parts."""
    accumulator = PaneAccumulator(version.layout, 60_000_000)
    valid = np.ones(len(values), np.bool_) if valid is None else valid
    for part, known in zip(np.array_split(values, parts), np.array_split(valid, parts), strict=True):
        n = len(part)
        accumulator.add_rows(
            Rows(
                event_times=np.zeros(n, np.int64),
                scores=np.full(n, 0.25),
                outputs=np.full((n, 1), 0.25),
                decisions=np.zeros(n, np.bool_),
                sources=np.ones(n, np.int64),
                latencies_ms=np.full(n, 5.0),
                costs=np.full(n, np.nan),
                failed=np.zeros(n, np.bool_),
                segments=("",) * n,
                features={NAME: (part, known)},
            )
        )
    return sum_panes(version.layout, [(key.start_us, p) for key, p in accumulator.merge({}).items()])


VERSION = version_of(profile(TRAINING))


def judged(values: np.ndarray, valid: np.ndarray | None = None) -> FeatureDrift:
    counts = window(VERSION, values, valid)
    (found,) = report_on(VERSION, Span(0, 60_000_000), counts, Quality(), POLICY).features
    return found


def test_directions_are_fixed_by_name_and_width() -> None:
    # Profiles are stored: other directions after an upgrade of numpy would be drift of every vector.
    np.testing.assert_allclose(directions(NAME, WIDTH), AXES, rtol=0, atol=1e-15)
    known = [-0.184487, -0.155333, -0.130159]
    np.testing.assert_allclose(directions(NAME, WIDTH)[0, :3], known, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_statistics_are_those_of_the_most_different_projection(shift: float) -> None:
    served = vectors(3000, 2, shift)
    found = judged(served)
    ours, theirs = (rows.astype(np.float64) @ AXES.T for rows in (served, TRAINING))
    tests = [stats.ks_2samp(ours[:, k], theirs[:, k], method="asymp") for k in range(8)]
    # D is taken at 127 edges: too small by at most the share of a bin on each side.
    assert max(t.statistic for t in tests) - 2 / 128 <= found.ks <= max(t.statistic for t in tests) + 1e-9
    edges = [np.quantile(theirs[:, k], np.arange(1, 10) / 10) for k in range(8)]
    psi = []
    for k in range(8):
        n, m = (np.bincount(np.searchsorted(edges[k], x[:, k]), minlength=10) for x in (ours, theirs))
        p, q = (n + 0.5) / (n.sum() + 5), (m + 0.5) / (m.sum() + 5)
        psi.append(float(np.sum((p - q) * np.log(p / q))) - 9 * (1 / 3000 + 1 / 20_000))
    assert max(0.0, *psi) == pytest.approx(found.psi_corrected, rel=0.02, abs=0.002)
    clipped = np.clip(ours, theirs.min(axis=0), theirs.max(axis=0))
    moved = np.abs(clipped.mean(axis=0) - theirs.mean(axis=0)) / theirs.std(axis=0)
    assert moved.max() == pytest.approx(found.projection_shift, rel=1e-4)
    assert (NAME, None, 0.0) == (found.feature, found.mean_shift, found.null_rate)
    verdicts = {0.0: Verdict.NO_DRIFT, 0.5: Verdict.WARNING, 2.0: Verdict.DRIFT}
    assert verdicts[shift] == found.verdict


def test_equal_distributions_rarely_differ_significantly() -> None:
    found = [judged(vectors(1000, 100 + i)) for i in range(100)]
    # Binomial(100, 0.05): more than 12 has a probability of 0.15 %.
    assert sum(d.adjusted_p_value <= 0.05 for d in found) <= 12
    assert {Verdict.NO_DRIFT} == {d.verdict for d in found}


def test_nulls_are_a_rate_of_their_own_and_do_not_move_the_psi() -> None:
    served = vectors(2000, 3)
    valid = np.arange(2000) % 10 != 0
    whole, part = judged(served[valid]), judged(served, valid)
    assert 0.1 == part.null_rate
    assert whole.psi_corrected == pytest.approx(part.psi_corrected, abs=1e-12)
    assert Verdict.WARNING == part.verdict
    half = judged(served, np.arange(2000) % 2 == 0)
    assert (Verdict.DATA_QUALITY, "NULL_BURST") == (half.verdict, half.cause)


def test_vectors_that_are_not_finite_are_missing() -> None:
    served = vectors(2000, 4)
    served[:1200, 5] = np.inf
    served[1200:1300, 0] = np.nan
    found = judged(served)
    assert (0.65, "NULL_BURST") == (found.null_rate, found.cause)


@pytest.mark.parametrize("other", [np.zeros((500, WIDTH + 1), np.float32), np.zeros(500)])
def test_values_of_another_shape_are_a_change_of_schema(other: np.ndarray) -> None:
    found = judged(other)
    assert (Verdict.DATA_QUALITY, "SCHEMA_CHANGE") == (found.verdict, found.cause)


def test_equal_vectors_are_frozen_and_scaled_ones_changed_their_unit() -> None:
    assert judged(np.repeat(vectors(1, 5), 500, axis=0)).cause == "FROZEN_FEATURE"
    assert judged(vectors(500, 5) * 1000).cause == "UNIT_CHANGE"


def test_any_split_of_the_rows_counts_the_same() -> None:
    served = np.concatenate([TRAINING[:700], vectors(300, 6)])
    first = window(VERSION, served)
    for parts in (2, 9, 1000):
        other = window(VERSION, served, parts=parts)
        assert np.array_equal(first.counts, other.counts)
        assert np.array_equal(first.sums, other.sums)


def test_a_projection_does_not_depend_on_the_rows_beside_it() -> None:
    rows = np.random.default_rng(8).normal(size=(301, 768)).astype(np.float32)
    together = project(rows, NAME)
    alone = np.concatenate([project(rows[i : i + 1], NAME) for i in range(301)])
    assert np.array_equal(together, alone)


def test_an_equal_window_some_weeks_earlier_makes_the_verdict_milder() -> None:
    policy = MonitorPolicy(min_predictions=100, seasonal_weeks=1)
    now, before, usual = (window(VERSION, vectors(3000, s, m)) for s, m in ((2, 2), (9, 2), (10, 0)))
    found = report_on(VERSION, Span(0, 60_000_000), now, Quality(), policy).features
    assert [Verdict.DRIFT] == [d.verdict for d in found]
    assert [Verdict.NO_DRIFT] == [d.verdict for d in confirm_against(before, now, found, policy)[0]]
    assert [Verdict.DRIFT] == [d.verdict for d in confirm_against(usual, now, found, policy)[0]]
