"""Explanations of drift against the formulas, computed row by row."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from flywheel_monitor.drift import psi
from flywheel_monitor.drift.explanation import (
    FeatureExplanation,
    by_impact,
    explain_feature,
    importances,
)
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins

CATEGORIES = ("a", "b", "c", "d", "e", "f", "g")
REFERENCE = (400, 250, 120, 90, 70, 40, 30)


def categorical(name: str = "v__c") -> FeatureBins:
    return FeatureBins(ColumnReference(name, False, REFERENCE, categories=CATEGORIES))


def numeric(name: str = "v__x") -> FeatureBins:
    edges = tuple(float(i) for i in range(1, 10))
    column = ColumnReference(name, True, (100,) * 10, edges=edges, mean=5, stddev=3, maximum=10)
    return FeatureBins(column)


def counted(bins: FeatureBins, values: np.ndarray) -> np.ndarray:
    assigned = bins.assign(values, np.ones(len(values), np.bool_), len(values))
    return np.bincount(assigned, minlength=bins.size)


def drawn(rng: np.random.Generator, rows: int, shares: list[float]) -> np.ndarray:
    return rng.choice(np.array(CATEGORIES), rows, p=shares)


SAMPLES = {
    "airport": drawn(np.random.default_rng(1), 600, [0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.3]),
    "city": drawn(np.random.default_rng(2), 300, [0.4, 0.25, 0.12, 0.09, 0.07, 0.04, 0.03]),
    "": drawn(np.random.default_rng(3), 100, [0.7, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02]),
}


def smoothed(window: Counter[str]) -> dict[str, tuple[float, float]]:
    """Category → shares of the window and of the reference with half a row more in each."""
    n, m, size = window.total(), sum(REFERENCE), len(CATEGORIES)
    return {
        c: ((window[c] + 0.5) / (n + size / 2), (r + 0.5) / (m + size / 2))
        for c, r in zip(CATEGORIES, REFERENCE, strict=True)
    }


def test_the_bins_with_the_largest_terms_are_listed() -> None:
    bins, rows = categorical(), np.concatenate(list(SAMPLES.values()))
    found = explain_feature(bins, counted(bins, rows), counted(bins, rows)[None], {}, 0.25)
    terms = {c: (p - q) * math.log(p / q) for c, (p, q) in smoothed(Counter(rows.tolist())).items()}
    expected = sorted(terms, key=lambda c: -terms[c])[:5]
    assert expected == [one.category for one in found.bins]
    assert [terms[c] for c in expected] == pytest.approx([one.psi_term for one in found.bins], abs=1e-12)
    first = found.bins[0]
    share = np.mean(rows == first.category), REFERENCE[CATEGORIES.index(first.category)] / 1000
    assert share == pytest.approx((first.observed_share, first.reference_share), abs=1e-12)
    assert sum(terms.values()) == pytest.approx(found.psi, abs=1e-12)
    assert psi.corrected(psi.coarse(bins, counted(bins, rows)), np.array(REFERENCE)) == found.drift
    assert 0.25 * found.drift == found.impact
    assert () == found.segments


def test_the_parts_of_the_segments_sum_to_the_psi() -> None:
    bins, rows = categorical(), np.concatenate(list(SAMPLES.values()))
    segments = {name: counted(bins, values) for name, values in SAMPLES.items() if name}
    found = explain_feature(bins, counted(bins, rows), counted(bins, rows)[None], segments, 1.0)
    shares = smoothed(Counter(rows.tolist()))
    expected = {}
    for name, values in SAMPLES.items():
        weight, seen = len(values) / len(rows), Counter(values.tolist())
        # The half row of each bin belongs to the segments in proportion to their rows.
        own = {c: (seen[c] + 0.5 * weight) / (len(values) + 3.5 * weight) for c in CATEGORIES}
        expected[name] = weight, weight * sum((own[c] - q) * math.log(p / q) for c, (p, q) in shares.items())
    parts = {one.segment: (one.row_share, one.psi_part) for one in found.segments}
    assert expected.keys() == parts.keys()
    for name, values in expected.items():
        assert values == pytest.approx(parts[name], abs=1e-12)
    assert found.psi == pytest.approx(sum(part for _, part in parts.values()), abs=1e-12)
    assert "airport" == found.segments[0].segment
    assert parts[""][1] < 0, "the other rows moved in the other direction"


def test_more_segments_than_are_listed_still_divide_the_whole() -> None:
    bins = categorical()
    values = {f"s{i}": np.array(["g"] * (i + 1)) for i in range(8)}
    segments = {name: counted(bins, one) for name, one in values.items()}
    whole = sum(segments.values())
    found = explain_feature(bins, whole, whole[None], segments, 1.0)
    assert ["s7", "s6", "s5", "s4", "s3"] == [one.segment for one in found.segments]
    assert found.psi * (8 + 7 + 6 + 5 + 4) / 36 == pytest.approx(
        sum(one.psi_part for one in found.segments), abs=1e-12
    )


def test_numeric_bins_name_their_ends() -> None:
    bins = numeric()
    rows = np.concatenate([np.full(500, 20.0), np.arange(1, 11) - 0.5])
    found = explain_feature(bins, counted(bins, rows), counted(bins, rows)[None], {}, 1.0)
    ends = [(one.above, one.up_to, one.category) for one in found.bins]
    assert (9.0, None, "") == ends[0]
    assert (None, 1.0, "") == ends[1]
    assert (1.0, 2.0, "") == ends[2]


def test_rows_without_a_bin_are_rates_and_no_part_of_the_psi() -> None:
    bins = categorical()
    rows = np.array(["z"] * 30 + ["a"] * 70)
    counts = counted(bins, rows)
    found = explain_feature(bins, counts, counts[None], {"only": counts}, 1.0)
    assert (0.3, 0.0) == (found.unseen_rate, found.reference_unseen_rate)
    assert [("only", 1.0)] == [(one.segment, one.row_share) for one in found.segments]
    nothing = counted(bins, np.array(["z"] * 30))
    empty = explain_feature(bins, nothing, nothing[None], {"only": nothing}, 1.0)
    assert (0.0, 0.0, (), ()) == (empty.psi, empty.drift, empty.bins, empty.segments)


def test_importances_are_shares_of_all_inputs() -> None:
    metrics = {
        "auc": 0.9,
        "importance{feature=v__x}": 0.06,
        "importance{feature=v__c}": -0.01,
        "importance{feature=v__vector}": 0.02,
    }
    found, known = importances(metrics, ["v__x", "v__c", "v__new"])
    assert known
    assert {"v__x": 0.75, "v__c": 0.0, "v__new": 0.0} == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("metrics", [{"auc": 0.9}, {"importance{feature=v__x}": 0.0}])
def test_without_importances_all_features_count_alike(metrics: dict[str, float]) -> None:
    assert ({"v__x": 0.25, "v__c": 0.25, "v__y": 0.25, "v__z": 0.25}, False) == importances(
        metrics, ["v__x", "v__c", "v__y", "v__z"]
    )


def test_an_important_feature_comes_before_one_that_drifts_more() -> None:
    rows = np.concatenate(list(SAMPLES.values()))

    def explained(name: str, values: np.ndarray, importance: float) -> FeatureExplanation:
        bins = categorical(name)
        return explain_feature(bins, counted(bins, values), counted(bins, values)[None], {}, importance)

    found = by_impact(
        [
            explained("v__unused", SAMPLES["airport"], 0.0),
            explained("v__minor", SAMPLES["airport"], 0.1),
            explained("v__major", rows, 0.9),
            explained("v__same", SAMPLES["city"], 0.0),
        ]
    )
    assert ["v__major", "v__minor", "v__unused", "v__same"] == [one.feature for one in found]
    assert found[1].drift > found[0].drift
