"""Policies for features without a usable value."""

from __future__ import annotations

import numpy as np

from flywheel_common.scoring.feature_block import (
    NOT_FOUND,
    NOT_YET_VALID,
    NULL,
    PRESENT,
    STALE,
    FeatureBlock,
    FeatureColumn,
)
from flywheel_common.scoring.feature_policy import ALLOW, DEFAULT, FAIL, FeaturePolicy
from flywheel_common.scoring.treated_features import treat
from flywheel_protos.types.v1 import value_pb2 as t

STATUSES = [PRESENT, NULL, NOT_FOUND, STALE, NOT_YET_VALID]
VALID = np.array([True, False, False, False, False])


def block() -> FeatureBlock:
    """Columns a (number), b (text) and c (vector); each has every status once."""
    texts = np.array(["x", None, None, None, None], object)
    return FeatureBlock(
        "fs",
        (
            FeatureColumn("a", t.DATA_TYPE_FLOAT64, np.array([1.0, 0, 0, 4, 0]), VALID),
            FeatureColumn("b", t.DATA_TYPE_STRING, texts, VALID),
            FeatureColumn("c", t.DATA_TYPE_FLOAT32_VECTOR, np.ones((5, 2), np.float32), VALID),
        ),
        np.array([STATUSES] * 3, np.uint8),
    )


def test_a_default_replaces_nulls_for_the_model_only() -> None:
    logged = block()
    policies = [
        FeaturePolicy("a", missing=DEFAULT, default=-1.5),
        FeaturePolicy("b", DEFAULT, DEFAULT, "?"),
        FeaturePolicy("c", ALLOW, DEFAULT, [5.0, 6.0]),
    ]
    treated = treat(policies, logged)
    a, b, c = treated.block.columns
    assert (a.values.tolist(), a.valid.tolist()) == (
        [1.0, -1.5, -1.5, 4.0, -1.5],
        [True, True, True, False, True],
    )
    assert (b.values.tolist(), b.valid.all()) == (["x", "?", "?", "?", "?"], True)
    assert c.values[3].tolist() == [5.0, 6.0] and c.valid.tolist() == [True, False, False, True, False]
    assert (treated.missing, treated.stale) == ({}, {})
    assert logged.columns[0].valid.tolist() == VALID.tolist()
    assert logged.columns[0].values.tolist() == [1.0, 0, 0, 4, 0]


def test_a_row_fails_with_the_first_feature_that_its_policies_refuse() -> None:
    treated = treat([FeaturePolicy("b", FAIL, ALLOW), FeaturePolicy("a", FAIL, FAIL)], block())
    assert treated.missing == {1: "b", 2: "b", 4: "b"}
    assert treated.stale == {3: "a"}


def test_without_a_policy_a_null_stays_null() -> None:
    logged = block()
    for policies in ([], [FeaturePolicy("a")], [FeaturePolicy("unknown", FAIL, FAIL)]):
        treated = treat(policies, logged)
        assert treated.block.columns == logged.columns
        assert (treated.missing, treated.stale) == ({}, {})
