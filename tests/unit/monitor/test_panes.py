"""Counting into panes: no row is lost, and any order and any split give the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from flywheel_monitor.performance.quality import quality
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins, Special
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.packing import pack, unpack
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PackedPane, PaneAccumulator, PaneKey
from flywheel_monitor.windows.rows import LabelledRows, Rows


def total(panes: Mapping[PaneKey, PackedPane]) -> WindowCounts:
    return sum_panes(LAYOUT, [(key.start_us, pane) for key, pane in panes.items()])


NUMBER = ColumnReference(
    "v__x",
    True,
    counts=(25, 25, 25, 25),
    null_count=5,
    edges=(-1.0, 0.0, 1.0),
    mean=0.0,
    stddev=1.0,
    minimum=-3.0,
    maximum=3.0,
)
TEXT = ColumnReference("v__c", False, counts=(60, 40), categories=("a", "b"))
LAYOUT = Layout.of([TEXT, NUMBER])
PANE = 60_000_000


def make(values: list[float], *, pane: int = 0, categories: list[str] | None = None, **fields: Any) -> Rows:
    n = len(values)
    x = np.array(values, np.float64)
    texts = np.empty(n, object)
    texts[:] = categories or ["a"] * n
    every = np.ones(n, np.bool_)
    given_fields = {
        "event_times": np.full(n, pane * PANE, np.int64),
        "scores": np.full(n, 0.25),
        "decisions": np.zeros(n, np.bool_),
        "costs": np.full(n, np.nan),
        "sources": np.ones(n, np.int64),
        "latencies_ms": np.full(n, 5.0),
        "failed": np.zeros(n, np.bool_),
        "segments": ("",) * n,
        "features": {"v__x": (x, every), "v__c": (texts, every)},
        **fields,
    }
    given_fields.setdefault("outputs", given_fields["scores"][:, None])
    return Rows(**given_fields)


def labelled(times: Any, scores: Any, labels: Any, weight: int = 1) -> LabelledRows:
    n = len(times)
    return LabelledRows(times, ("",) * n, scores, scores[:, None], labels, np.full(n, weight, np.int64))


def test_bins_are_right_closed_and_special_values_have_own_bins() -> None:
    bins = FeatureBins(NUMBER)
    values = np.array([-3.0, -1.0, -0.999, 0.0, 1.0, 3.0, 3.1, -3.1, np.nan, np.inf, 1000.0, 7.0])
    valid = np.ones(12, np.bool_)
    valid[-1] = False
    r = bins.regular
    expected = [
        0,
        0,
        1,
        1,
        2,
        3,
        r + Special.ABOVE,
        r + Special.BELOW,
        r + Special.NON_FINITE,
        r + Special.NON_FINITE,
        r + Special.FAR,
        r + Special.NULL,
    ]
    assert bins.assign(values, valid, 12).tolist() == expected


def test_unlisted_categories_missing_columns_and_wrong_types() -> None:
    bins = FeatureBins(TEXT)
    texts = np.array(["b", "zz", "a"], object)
    every = np.ones(3, np.bool_)
    assert bins.assign(texts, every, 3).tolist() == [1, 2 + Special.UNSEEN, 0]
    assert bins.assign(None, every, 3).tolist() == [2 + Special.NULL] * 3
    assert bins.assign(np.array([0.5, 1.5, 2.5]), every, 3).tolist() == [2 + Special.MALFORMED] * 3
    assert FeatureBins(NUMBER).assign(texts, every, 3).tolist() == [4 + Special.MALFORMED] * 3


def test_booleans_match_categories_in_either_spelling() -> None:
    values, every = np.array([True, False]), np.ones(2, np.bool_)
    lower = FeatureBins(ColumnReference("b", False, (1, 1), categories=("false", "true")))
    title = FeatureBins(ColumnReference("b", False, (1, 1), categories=("True", "False")))
    assert lower.assign(values, every, 2).tolist() == [1, 0]
    assert title.assign(values, every, 2).tolist() == [0, 1]


number = st.one_of(st.floats(-5, 5), st.sampled_from([float("nan"), float("inf"), 1e6, -1e6]))


@given(
    st.lists(
        st.tuples(number, st.integers(0, 3), st.sampled_from(["a", "b", "zz"])), min_size=1, max_size=60
    ),
    st.randoms(),
)
@settings(max_examples=100, deadline=None)
def test_any_split_and_order_of_rows_gives_the_same_panes(
    rows: list[tuple[float, int, str]], random: Any
) -> None:
    def batch(part: list[tuple[float, int, str]]) -> Rows:
        return make(
            [x for x, _, _ in part],
            categories=[c for _, _, c in part],
            event_times=np.array([p * PANE + 5 for _, p, _ in part], np.int64),
        )

    whole = PaneAccumulator(LAYOUT, PANE)
    whole.add_rows(batch(rows))
    at_once = whole.merge({})
    shuffled = rows[:]
    random.shuffle(shuffled)
    stored: dict[PaneKey, PackedPane] = {}
    for start in range(0, len(rows), 7):
        added = PaneAccumulator(LAYOUT, PANE)
        added.add_rows(batch(shuffled[start : start + 7]))
        stored.update(added.merge({k: stored[k] for k in added.touched() if k in stored}))
    assert stored == at_once
    window = total(at_once)
    assert window.predictions == len(rows)
    for bins in LAYOUT.features:
        assert window.feature(bins).sum() == len(rows)


def test_a_label_that_is_taken_back_changes_no_count() -> None:
    added = PaneAccumulator(LAYOUT, PANE)
    times, scores = np.zeros(2, np.int64), np.array([0.2, 0.9])
    added.add_rows(make([0.0, 0.0], scores=scores))
    before = total(added.merge({}))
    for label, weight in ((1.0, 1), (1.0, -1)):
        added.add_labels(labelled(times, scores, np.full(2, label), weight))
    after = total(added.merge({}))
    assert np.array_equal(after.counts, before.counts)
    assert np.array_equal(after.sums, before.sums)


def test_window_quality_equals_that_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 3000)
    labels = (rng.uniform(size=3000) < scores).astype(float)
    added = PaneAccumulator(LAYOUT, PANE)
    times = rng.integers(0, 10, 3000) * PANE
    added.add_rows(make([0.0] * 3000, scores=scores, event_times=times))
    added.add_labels(labelled(times, scores, labels))
    window = total(added.merge({}))
    found = quality(window)
    assert found.log_loss == pytest.approx(metrics.log_loss(labels, scores), abs=1e-8)
    assert found.brier == pytest.approx(metrics.brier_score_loss(labels, scores), abs=1e-8)
    expected = 0.0
    for k in range(10):
        inside = (scores >= k / 10) & (scores < (k + 1) / 10)
        expected += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    assert found.calibration_error == pytest.approx(expected, abs=1e-8)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, scores), abs=2e-3)
    assert window.score_moments() == pytest.approx((scores.mean(), scores.std()), abs=1e-7)


def test_mean_shift_is_in_reference_standard_deviations() -> None:
    values = np.random.default_rng(1).normal(0.4, 1, 2000)
    values = values[np.abs(values) < 3]
    added = PaneAccumulator(LAYOUT, PANE)
    added.add_rows(make(values.tolist()))
    window = total(added.merge({}))
    assert window.mean_shift("v__x") == pytest.approx(values.mean(), abs=1e-4)


def test_segments_are_counted_apart() -> None:
    added = PaneAccumulator(LAYOUT, PANE)
    added.add_rows(make([0.0] * 3, segments=("jfk", "", "jfk")))
    panes = added.merge({})
    assert {k: p.predictions for k, p in panes.items()} == {
        PaneKey("", PANE, 0): 3,
        PaneKey("jfk", PANE, 0): 2,
    }


def test_features_of_fallbacks_and_errors_are_not_counted() -> None:
    added = PaneAccumulator(LAYOUT, PANE)
    sources = np.array([1, 4, 3])
    added.add_rows(
        make([0.0, 0.0, 0.0], sources=sources, scores=np.array([0.5, np.nan, 0.5]), failed=sources == 4)
    )
    window = total(added.merge({}))
    assert window.feature(LAYOUT.features[0]).sum() == 1
    assert (window.scored, window.failures, window.predictions) == (1, 1, 3)
    assert window.sources.tolist() == [0, 1, 0, 1, 1]


def test_a_full_pane_of_twenty_features_stays_below_32_kib() -> None:
    columns = [
        ColumnReference(
            f"v__f{i:02d}",
            True,
            (10,) * 128,
            edges=tuple(np.linspace(0, 1, 129)[1:-1]),
            stddev=1.0,
            maximum=1.0,
        )
        for i in range(20)
    ]
    layout = Layout.of(columns)
    n = 20_000
    rng = np.random.default_rng(0)
    every = np.ones(n, np.bool_)
    rows = make(
        [0.0] * n,
        features={c.name: (rng.uniform(size=n), every) for c in columns},
        scores=rng.uniform(size=n),
    )
    added = PaneAccumulator(layout, PANE)
    added.add_rows(rows)
    (pane,) = added.merge({}).values()
    assert len(pane.counts) + len(pane.sums) < 32 * 1024


def test_packed_counts_unpack_to_the_same_counts() -> None:
    indices, values = np.array([3, 900, 70_000]), np.array([1, 4_000_000_000, -2])
    back = unpack(pack(indices, values))
    assert [b.tolist() for b in back] == [indices.tolist(), values.tolist()]
