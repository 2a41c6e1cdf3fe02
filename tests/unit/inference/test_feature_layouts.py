"""The gateway's blocks, tensors and log columns are the same from both layouts of the feature service."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.columns import from_numpy, to_table
from flywheel_common.errors import Internal
from flywheel_common.scoring.feature_block import PRESENT, STALE, FeatureBlock, concatenate_blocks
from flywheel_common.scoring.feature_policy import DEFAULT, FeaturePolicy
from flywheel_common.scoring.input_tensors import TensorBuilder
from flywheel_common.scoring.preparation import prepare
from flywheel_common.signature import (
    BOOL,
    FLOAT32,
    FLOAT32_VECTOR,
    FLOAT64,
    INT64,
    STRING,
    InputSpec,
    Signature,
    TensorSpec,
)
from flywheel_inference.encoding.typed_columns import feature_table
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.store.grpc.features import to_block, to_contract
from flywheel_protos.feature.v1 import definitions_pb2, feature_tensor_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import value_pb2

NAME = "projects/default/featureSets/s/versions/1"
SIZE = 2
DTYPES = {BOOL: "?", FLOAT32: "f4", FLOAT32_VECTOR: "f4"}
CELLS: dict[int, st.SearchStrategy[Any]] = {
    BOOL: st.booleans(),
    FLOAT32: st.floats(width=32, allow_nan=False),
    FLOAT32_VECTOR: st.lists(st.floats(width=32, allow_nan=False), min_size=SIZE, max_size=SIZE),
}


def contract_of(types: list[int]) -> FeatureSetContract:
    features = [FieldSpec(f"v__f{i}", t, SIZE if t == FLOAT32_VECTOR else 0) for i, t in enumerate(types)]
    return FeatureSetContract(NAME, (), (), tuple(features))


def in_both_layouts(
    contract: FeatureSetContract, found: list[Any], statuses: Any
) -> tuple[pb.GetOnlineFeaturesResponse, pb.GetOnlineFeaturesResponse]:
    """Responses with these values, as the feature service writes them; statuses [features, rows]."""
    has_value = (statuses == PRESENT) | (statuses == STALE)
    columns = [
        from_numpy(spec.name, values, valid, data_type=spec.data_type)
        for spec, values, valid in zip(contract.features, found, has_value, strict=True)
    ]
    rows = statuses.shape[1]
    elements = []
    for values, status in zip(found, statuses, strict=True):
        matrix = values.reshape(rows, -1).astype("<f4")
        matrix[status != PRESENT] = np.nan
        elements.append(matrix)
    tensor = feature_tensor_pb2.FeatureTensor(row_count=rows, values=np.hstack(elements).tobytes())
    return (
        pb.GetOnlineFeaturesResponse(
            features=to_table(columns), statuses=statuses.tobytes(), feature_set=NAME
        ),
        pb.GetOnlineFeaturesResponse(tensor=tensor, statuses=statuses.tobytes(), feature_set=NAME),
    )


@st.composite
def responses(
    draw: st.DrawFn,
) -> tuple[FeatureSetContract, tuple[pb.GetOnlineFeaturesResponse, pb.GetOnlineFeaturesResponse], int]:
    types = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=5))
    rows = draw(st.integers(1, 6))
    found = [np.array(draw(st.lists(CELLS[t], min_size=rows, max_size=rows)), DTYPES[t]) for t in types]
    cell = st.sampled_from([1, 1, 1, 2, 3, 4, 5])
    statuses = draw(
        st.lists(st.lists(cell, min_size=rows, max_size=rows), min_size=len(types), max_size=len(types))
    )
    contract = contract_of(types)
    return contract, in_both_layouts(contract, found, np.array(statuses, np.uint8)), rows


def logged(builder: TensorBuilder, block: FeatureBlock) -> bytes:
    return feature_table(builder.served(block), np.arange(block.rows)).SerializeToString()


def signatures(contract: FeatureSetContract) -> list[Signature]:
    """The features in order, in other orders and numbers, split over tensors, and with a vocabulary."""
    inputs = [InputSpec(f.name, f.data_type, vector_size=f.vector_size) for f in contract.features]
    first, *others = inputs
    found = [Signature(tuple(inputs)), Signature(tuple(reversed(inputs))), Signature((first,))]
    if others:
        tensors = tuple(
            TensorSpec(n, FLOAT32, (sum(i.elements for i in i_s),))
            for n, i_s in (("A", [first]), ("B", others))
        )
        split = [
            InputSpec(i.name, i.data_type, (), "A" if i is first else "B", i.vector_size) for i in inputs
        ]
        found.append(Signature(tuple(split), tensors))
    if not first.vector_size:
        found.append(Signature((InputSpec(first.name, first.data_type, ("true", "1.0", "0.5")), *others)))
    return found


@given(responses(), st.booleans())
def test_tensors_statuses_and_log_columns_are_equal(given: Any, fills: bool) -> None:
    contract, (in_columns, in_tensor), rows = given
    one, other = to_block(in_columns, contract, rows), to_block(in_tensor, contract, rows)
    assert one.statuses.tolist() == other.statuses.tolist()
    assert one.size_bytes == other.size_bytes
    policies = ()
    if fills and contract.features[0].data_type == FLOAT32:
        policies = (FeaturePolicy(contract.features[0].name, DEFAULT, DEFAULT, 0.25),)
    for signature in signatures(contract):
        builder = TensorBuilder(signature)
        for a, b in (
            (one, other),
            (one.take(np.array([rows - 1, 0])), other.take(np.array([rows - 1, 0]))),
            (concatenate_blocks([one, one]), concatenate_blocks([other, other])),
            (concatenate_blocks([one, one]), concatenate_blocks([other, one])),
        ):
            assert logged(builder, a) == logged(builder, b)
            wanted, got = prepare(policies, builder, a), prepare(policies, builder, b)
            assert wanted.rows.tolist() == got.rows.tolist()
            assert wanted.refused == got.refused
            for name, tensor in wanted.tensors.items():
                assert (tensor.dtype, tensor.shape) == (got.tensors[name].dtype, got.tensors[name].shape)
                np.testing.assert_array_equal(tensor, got.tensors[name])


def test_the_bytes_of_the_response_are_the_models_input() -> None:
    contract = contract_of([FLOAT32, BOOL, FLOAT32_VECTOR])
    found = [np.array([0.1, -0.0], "f4"), np.array([True, False]), np.array([[1, 2], [3, 4]], "f4")]
    _, in_tensor = in_both_layouts(contract, found, np.ones((3, 2), np.uint8))
    block = to_block(in_tensor, contract, 2)
    inputs = tuple(InputSpec(f.name, f.data_type, vector_size=f.vector_size) for f in contract.features)
    tensor = TensorBuilder(Signature(inputs)).build(block).tensors["INPUT"]
    assert in_tensor.tensor.values == tensor.tobytes()
    assert np.shares_memory(tensor, block.columns[0].values), "the log's column is a view"
    assert not tensor.flags.writeable, "no copy was made"


def test_a_response_of_another_version_or_size_is_refused() -> None:
    contract = contract_of([FLOAT32])
    _, response = in_both_layouts(contract, [np.array([1.0, 2.0], "f4")], np.ones((1, 2), np.uint8))
    response.feature_set = NAME.replace("versions/1", "versions/2")
    with pytest.raises(Internal):
        to_block(response, contract, 2)
    response.feature_set = NAME
    response.tensor.values = response.tensor.values[:4]
    with pytest.raises(Internal):
        to_block(response, contract, 2)


@pytest.mark.parametrize(
    ("types", "elements"),
    [
        ([FLOAT32, BOOL, FLOAT32_VECTOR], 2 + SIZE),
        ([FLOAT32, FLOAT64], 0),
        ([FLOAT32, INT64], 0),
        ([STRING], 0),
        ([], 0),
    ],
)
def test_the_matrix_is_asked_for_only_if_float32_holds_every_type(types: list[int], elements: int) -> None:
    assert elements == contract_of(types).float32_elements


def test_features_are_known_only_for_a_named_version() -> None:
    schema = [value_pb2.Field(name="v__f0", data_type=value_pb2.DATA_TYPE_FLOAT32)]
    feature_set = definitions_pb2.FeatureSet(name=NAME, schema=schema)
    assert (FieldSpec("v__f0", FLOAT32),) == to_contract(feature_set, NAME).features
    assert () == to_contract(feature_set, NAME.removesuffix("/versions/1")).features
