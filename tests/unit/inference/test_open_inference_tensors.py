"""Tensors of the Open Inference Protocol: both forms against tritonclient, limits, rows of predictions."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb

from flywheel_common.errors import InvalidArgument, WrongType
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_inference.api.open_inference_rows import (
    PredictionRows,
    input_metadata,
    output_metadata,
    output_tensors,
    wanted_outputs,
)
from flywheel_inference.api.open_inference_tensors import infer_response, inputs_of
from flywheel_inference.open_inference.address import Address, address
from flywheel_inference.open_inference.errors import InvalidTensor, TensorTooLarge
from flywheel_inference.open_inference.tensor import DTYPES, NamedTensor, from_raw
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.types.v1 import value_pb2

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT16": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def values_of(datatype: str) -> Any:
    dtype = DTYPES[datatype]
    if dtype.kind == "b":
        return np.array([[True, False], [False, False], [True, True]])
    if dtype.kind == "f":
        return np.array([[1.5, -0.0], [np.inf, 1e-3], [0.1, -7]], dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1], [2, 3]], dtype)


@pytest.mark.parametrize("datatype", [*DTYPES, "BYTES"])
def test_raw_tensors_of_tritonclient_are_read_and_answered(datatype: str) -> None:
    values = np.array([[b"a", b""], [b"\xff\0", "ü".encode()], [b"x" * 300, b"1"]], object)
    if datatype != "BYTES":
        values = values_of(datatype)
    sent = tritonclient.grpc.InferInput("x", [3, 2], datatype)
    sent.set_data_from_numpy(values)
    request = pb.ModelInferRequest(
        inputs=[sent._get_tensor()], raw_input_contents=[sent._get_content()], id="7"
    )
    (found,) = inputs_of(request)
    assert (found.name, found.datatype, found.shape) == ("x", datatype, (3, 2))
    np.testing.assert_array_equal(found.values, values)
    answered = tritonclient.grpc.InferResult(infer_response(request, [found]))
    np.testing.assert_array_equal(answered.as_numpy("x"), values)
    assert answered.get_response().id == "7"


@pytest.mark.parametrize("datatype", CONTENTS)
def test_contents_are_read_and_answered(datatype: str) -> None:
    values = values_of(datatype)
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[3, 2])
    getattr(tensor.contents, CONTENTS[datatype]).extend(values.ravel().tolist())
    (found,) = inputs_of(request)
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == DTYPES[datatype]
    response = infer_response(request, [found])
    assert not response.raw_output_contents
    assert response.outputs[0].contents == tensor.contents


@pytest.mark.parametrize(
    ("datatype", "shape", "contents"),
    [
        ("INT8", [1], {"int_contents": [128]}),
        ("UINT8", [1], {"uint_contents": [256]}),
        ("FP32", [1], {"fp64_contents": [1.0]}),
        ("FP32", [2], {"fp32_contents": [1.0]}),
        ("FP32", [1], {"fp32_contents": [1.0], "int_contents": [1]}),
        ("FP16", [1], {"fp32_contents": [1.0]}),
        ("FP16", [1], {}),
        ("BYTES", [2], {"bytes_contents": [b"a"]}),
        ("BYTES", [1, 1, 1, 1, 1, 1, 1, 1, 1], {"bytes_contents": [b"a"]}),
    ],
)
def test_contents_that_contradict_their_declaration_are_refused(
    datatype: str, shape: list[int], contents: dict[str, Any]
) -> None:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    with pytest.raises(InvalidTensor, match="'x'"):
        inputs_of(request)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "error"),
    [
        ("FP64", [1024, 2**50], b"12345678", InvalidTensor),
        ("BYTES", [1024, 1023], b"\0" * 8, InvalidTensor),
        ("BYTES", [1024, 2**50], b"\0" * 8, TensorTooLarge),
        ("FP64", [2**60], b"12345678", TensorTooLarge),
        ("BOOL", [2], b"\1\2", InvalidTensor),
        ("BYTES", [1], b"\2\0\0\0a", InvalidTensor),
        ("BYTES", [1], b"\1\0\0\0ab", InvalidTensor),
        ("BYTES", [2], b"\1\0\0\0a\0\0\0", InvalidTensor),
    ],
)
def test_declared_sizes_are_checked_before_memory_is_allocated(
    datatype: str, shape: list[int], raw: bytes, error: type[Exception]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(error):
            from_raw("x", datatype, shape, raw)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_name_and_a_version_address_a_model_or_a_version() -> None:
    model, version = "projects/p/models/m", "projects/p/models/m/versions/3"
    assert address(model, "") == Address(model)
    assert address(model, "3") == address(version, "") == address(version, "3") == Address(model, version)
    assert (Address(model).version, Address(model, version).version) == ("", "3")
    for name, number in ((version, "4"), (model, "x"), (model, "0"), (model, "3/../4"), ("m", ""), ("", "")):
        with pytest.raises(InvalidArgument):
            address(name, number)


CONTRACT = FeatureSetContract(
    "fs",
    (FieldSpec("tail", value_pb2.DATA_TYPE_STRING), FieldSpec("seat", value_pb2.DATA_TYPE_INT64)),
    (
        FieldSpec("at", value_pb2.DATA_TYPE_TIMESTAMP),
        FieldSpec("blob", value_pb2.DATA_TYPE_BYTES),
        FieldSpec("place", value_pb2.DATA_TYPE_FLOAT32_VECTOR, 2),
        FieldSpec("names", value_pb2.DATA_TYPE_STRING_LIST),
        FieldSpec("seat", value_pb2.DATA_TYPE_INT64),
    ),
)


def objects(*values: Any) -> Any:
    return np.array(values, object)


def test_rows_become_requests_with_values_of_the_declared_kinds() -> None:
    tensors = [
        NamedTensor("tail", "BYTES", objects([b"N1"], ["ü".encode()])),
        NamedTensor("seat", "UINT8", np.array([7, 8], np.uint8)),
        NamedTensor("at", "INT64", np.array([1_000_001, -1])),
        NamedTensor("blob", "BYTES", objects(b"\xff", b"")),
        NamedTensor("place", "FP32", np.array([[0.5, 1], [2, 3]], np.float32)),
        NamedTensor("names", "BYTES", objects([b"a", b"b"], [b"c", b""])),
        NamedTensor("wind", "FP64", np.array([np.nan, 4])),
        NamedTensor("flywheel.as_of", "INT64", np.array([5_000_000, 6_000_000])),
        NamedTensor("flywheel.subject", "BYTES", objects(b"s", b"")),
        NamedTensor("flywheel.prediction_id", "BYTES", objects(b"p1", b"p2")),
    ]
    rows = PredictionRows("m", tensors, CONTRACT)
    assert rows.count == 2
    made = rows.request(0)
    assert (made.model, made.subject, made.prediction_id, made.as_of.seconds) == ("m", "s", "p1", 5)
    assert {name: value.WhichOneof("kind") for name, value in made.entity_keys.items()} == {
        "tail": "string_value",
        "seat": "int64_value",
        # A tensor that the champion does not know may be a key or a field of the challenger.
        "wind": "double_value",
    }
    fields = made.request_fields
    assert fields.keys() == {"at", "blob", "place", "names", "seat", "wind"}
    assert (fields["at"].timestamp_value.seconds, fields["at"].timestamp_value.nanos) == (1, 1_000)
    assert fields["blob"].bytes_value == b"\xff"
    assert [v.double_value for v in fields["place"].list_value.values] == [0.5, 1.0]
    assert [v.string_value for v in fields["names"].list_value.values] == ["a", "b"]
    assert rows.request(1).entity_keys["tail"].string_value == "ü"


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (NamedTensor("seat", "UINT64", np.array([2**63], np.uint64)), WrongType),
        (NamedTensor("tail", "BYTES", objects(b"\xff")), InvalidTensor),
        (NamedTensor("at", "INT64", np.array([2**62])), InvalidTensor),
        (NamedTensor("tail", "BYTES", objects([b"a", b"b"])), InvalidTensor),
        (NamedTensor("place", "FP32", np.zeros((1, 2, 1), np.float32)), InvalidTensor),
        (NamedTensor("place", "FP32", np.zeros((1, 65_537), np.float32)), TensorTooLarge),
        (NamedTensor("flywheel.as_of", "FP64", np.array([1.0])), InvalidTensor),
        (NamedTensor("flywheel.subject", "BYTES", objects([b"a", b"b"])), InvalidTensor),
    ],
)
def test_tensors_that_are_no_rows_are_refused(tensor: NamedTensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        PredictionRows("m", [tensor], CONTRACT).request(0)


def test_metadata_lists_each_key_and_field_once() -> None:
    assert input_metadata(CONTRACT) == [
        ("tail", "BYTES", (-1,)),
        ("seat", "INT64", (-1,)),
        ("at", "INT64", (-1,)),
        ("blob", "BYTES", (-1,)),
        ("place", "FP32", (-1, 2)),
        ("names", "BYTES", (-1, -1)),
    ]


def test_answers_become_tensors_and_their_size_is_limited() -> None:
    output = OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b"))
    answers = [
        inference_pb2.PredictResponse(
            score=0.75,
            decision=True,
            values=[0.25, 0.75],
            predicted_class="b",
            role=1,  # type: ignore[arg-type]
            source=1,  # type: ignore[arg-type]
        ),
        inference_pb2.PredictResponse(
            score=0.5,
            degraded=True,
            role=2,  # type: ignore[arg-type]
            source=3,  # type: ignore[arg-type]
        ),
    ]
    names = [name for name, _, _ in output_metadata(output)]
    assert wanted_outputs(output, [], 2, 10_000) == names
    found = {t.name: t.values.tolist() for t in output_tensors(answers, output, names)}
    assert found["score"] == [0.75, 0.5] and found["decision"] == [True, False]
    assert found["role"] == [b"CHAMPION", b"CHALLENGER"] and found["source"] == [b"MODEL", b"DEFAULT"]
    assert found["values"][0] == [0.25, 0.75] and np.isnan(found["values"][1]).all()
    assert found["predicted_class"] == [b"b", b""] and found["degraded"] == [False, True]
    wide = OutputSpec(OutputKind.VECTOR, size=65_536)
    assert wanted_outputs(wide, ["score"], 1024, 16 << 20) == ["score"]
    with pytest.raises(TensorTooLarge):
        wanted_outputs(wide, ["values"], 1024, 16 << 20)
