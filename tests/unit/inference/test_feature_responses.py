"""Tests of the conversion of feature service responses."""

from __future__ import annotations

import numpy as np

from flywheel_common.columns import from_numpy, to_table
from flywheel_common.scoring.feature_block import NOT_YET_VALID, NULL, PRESENT, STALE
from flywheel_common.scoring.input_tensors import TensorBuilder
from flywheel_common.signature import InputSpec, Signature
from flywheel_inference.releases.release import FeatureSetContract
from flywheel_inference.store.grpc.features import to_block
from flywheel_protos.feature.v1 import feature_pb2 as pb

SIGNATURE = Signature((InputSpec("v__x", 4), InputSpec("v__y", 4)))
CONTRACT = FeatureSetContract("projects/default/featureSets/s/versions/1", (), ())


def response(statuses: list[list[int]]) -> pb.GetOnlineFeaturesResponse:
    valid = np.array(statuses[0]) != NULL
    columns = [
        from_numpy("v__x", np.array([1.0, 2.0, 3.0]), valid),
        from_numpy("v__y", np.array([4.0, 5.0, 6.0]), np.ones(3, bool)),
    ]
    packed = np.array(statuses, np.uint8).tobytes()
    return pb.GetOnlineFeaturesResponse(features=to_table(columns), statuses=packed)


def test_a_stale_value_is_null_for_the_model() -> None:
    block = to_block(response([[PRESENT, STALE, NULL], [PRESENT, PRESENT, STALE]]), CONTRACT, 3)
    tensor = TensorBuilder(SIGNATURE).build(block).tensors["INPUT"]
    expected = [[1.0, 4.0], [np.nan, 5.0], [np.nan, np.nan]]
    np.testing.assert_array_equal(np.array(expected, np.float32), tensor)
    assert block.statuses.tolist() == [[PRESENT, STALE, NULL], [PRESENT, PRESENT, STALE]], "callers see STALE"


def test_a_value_that_is_not_yet_valid_is_null_for_the_model() -> None:
    block = to_block(
        response([[PRESENT, NOT_YET_VALID, NULL], [NOT_YET_VALID, NOT_YET_VALID, 1]]), CONTRACT, 3
    )
    tensor = TensorBuilder(SIGNATURE).build(block).tensors["INPUT"]
    expected = [[1.0, np.nan], [np.nan, np.nan], [np.nan, 6.0]]
    np.testing.assert_array_equal(np.array(expected, np.float32), tensor)
    assert ["v__y", "v__x,v__y", ""] == block.not_yet_valid()
    assert [] == block.take(np.array([2])).not_yet_valid(), "no row has one"
