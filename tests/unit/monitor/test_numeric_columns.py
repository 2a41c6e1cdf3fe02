"""All numeric features at once are counted as each of them alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.numeric_columns import NumericColumns
from flywheel_monitor.windows.sums import EXACT_ROWS, LIMB_BITS, SCALE, exact_terms

VALUES = st.one_of(
    st.floats(-4, 4), st.floats(), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, -2.5, 2.5, 1e300])
)


@st.composite
def features(draw: st.DrawFn) -> tuple[FeatureBins, ...]:
    """Some features with few or many bins; the deviation of one may be 0."""
    found = []
    for i in range(draw(st.integers(1, 4))):
        edges = sorted(draw(st.sets(st.floats(-2.4, 2.4), max_size=draw(st.sampled_from([0, 3, 90])))))
        deviation = draw(st.sampled_from([0.0, 0.7, 1e-300]))
        reference = ColumnReference(
            f"f{i}",
            True,
            (1,) * (len(edges) + 1),
            edges=tuple(edges),
            mean=draw(st.floats(-1, 1)),
            stddev=deviation,
            minimum=-2.5,
            maximum=draw(st.sampled_from([-2.5, 2.5])),
        )
        found.append(FeatureBins(reference))
    return tuple(found)


@settings(max_examples=200, deadline=None)
@given(features(), st.data())
def test_a_matrix_of_features_counts_as_its_rows(bins: tuple[FeatureBins, ...], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    x = np.array([[data.draw(VALUES) for _ in range(n)] for _ in bins])
    valid = np.array([[data.draw(st.booleans()) for _ in range(n)] for _ in bins])
    together = NumericColumns(bins)
    assigned = together.assign(x, valid)
    raw, clipped = together.standardized(x, valid)
    for i, feature in enumerate(bins):
        assert assigned[i].tolist() == feature.assign(x[i], valid[i], n).tolist()
        np.testing.assert_array_equal(raw[i], feature.standardized(x[i], valid[i], n, clip=False))
        expected = feature.standardized(x[i], valid[i], n)
        np.testing.assert_array_equal(clipped[i], np.where(raw[i] != 0.0, expected, 0.0))


@given(st.lists(st.floats(-255, 255), min_size=1, max_size=50))
def test_small_terms_add_exactly_in_floats(values: list[float]) -> None:
    terms = exact_terms(np.array(values))
    assert terms is not None
    assert sum(round(v * SCALE) for v in values) == int(terms.sum())


def test_the_most_rows_of_the_largest_terms_are_exact() -> None:
    largest = (2.0**LIMB_BITS - 1) / SCALE
    terms = exact_terms(np.full(EXACT_ROWS, largest))
    assert terms is not None
    assert EXACT_ROWS * (2**LIMB_BITS - 1) == int(np.add.reduceat(terms, [0])[0])
    assert exact_terms(np.array([1.0, -(2.0**LIMB_BITS) / SCALE])) is None
    assert exact_terms(np.array([np.nan])) is None
