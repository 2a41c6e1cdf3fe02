"""The model contract: rules of signatures, and round trips of signatures and tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flywheel_common.signature import (
    BOOL,
    FLOAT32,
    FLOAT32_VECTOR,
    FLOAT64,
    INT64,
    STRING,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
    problems,
)
from flywheel_common.signature_messages import (
    signature_from_message,
    signature_message,
    tensor_array,
    tensor_message,
)
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import tensor_pb2

WIDE = Signature(
    inputs=(
        InputSpec("v__age", INT64, tensor="numbers"),
        InputSpec("v__city", STRING, ("JFK", "LGA"), tensor="numbers"),
        InputSpec("v__text", STRING, tensor="text"),
        InputSpec("v__embedding", FLOAT32_VECTOR, tensor="embedding", vector_size=6),
    ),
    tensors=(
        TensorSpec("numbers", INT64, (2,)),
        TensorSpec("text", STRING, ()),
        TensorSpec("embedding", FLOAT32, (2, 3)),
    ),
    output=OutputSpec(OutputKind.MULTICLASS, "probabilities", class_names=("a", "b", "c")),
)

OUTPUTS = [
    OutputSpec(),
    OutputSpec(OutputKind.BINARY, "p", positive_class="late"),
    OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b")),
    OutputSpec(OutputKind.REGRESSION, "y", unit="minutes"),
    OutputSpec(OutputKind.VECTOR, size=128),
]


def test_an_empty_message_is_one_float_tensor_and_a_probability() -> None:
    message = model_pb2.Signature(
        inputs=[
            model_pb2.SignatureInput(name="a__x", data_type=FLOAT64),  # type: ignore[arg-type]
            model_pb2.SignatureInput(name="a__y", data_type=STRING, vocabulary=["u"]),  # type: ignore[arg-type]
        ]
    )
    signature = signature_from_message(message)
    assert signature.input_tensors == (TensorSpec("INPUT", FLOAT32, (2,)),)
    assert signature.output == OutputSpec(OutputKind.BINARY, "SCORE")
    assert problems(signature) == []


@pytest.mark.parametrize("output", OUTPUTS)
def test_signatures_survive_the_message(output: OutputSpec) -> None:
    signature = Signature(WIDE.inputs, WIDE.tensors, output)
    assert problems(signature) == []
    assert signature_from_message(signature_message(signature)) == signature


@pytest.mark.parametrize(("output", "width"), list(zip(OUTPUTS, [1, 1, 2, 1, 128], strict=True)))
def test_width_follows_the_kind(output: OutputSpec, width: int) -> None:
    assert output.width == width


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (Signature((InputSpec("a", FLOAT32), InputSpec("a", FLOAT32))), "unique, non-empty input"),
        (Signature((InputSpec("a", STRING, ("u", "u")),)), "repeats a value"),
        (Signature((InputSpec("a", STRING),)), "does not fit"),
        (Signature((InputSpec("a", FLOAT32_VECTOR),)), "vector_size"),
        (Signature((InputSpec("a", FLOAT32, tensor="other"),)), "does not declare"),
        (Signature((InputSpec("a", FLOAT32),), (TensorSpec("INPUT", FLOAT32, (2,)),)), "elements per row"),
        (Signature((InputSpec("a", FLOAT64),), (TensorSpec("INPUT", INT64, (1,)),)), "does not fit"),
        (Signature((InputSpec("a", FLOAT32),), (TensorSpec("INPUT", 6, (1,)),)), "must be one of"),
        (Signature(WIDE.inputs, (*WIDE.tensors, TensorSpec("x", BOOL, ()))), "has no input"),
        (Signature(output=OutputSpec(OutputKind.MULTICLASS, class_names=("a",))), "two unique"),
        (Signature(output=OutputSpec(OutputKind.VECTOR)), "size from 1"),
    ],
)
def test_broken_rules_are_named(signature: Signature, words: str) -> None:
    assert any(words in problem for problem in problems(signature))


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4, min_side=0)))
def test_float_tensors_survive_the_message(array: np.ndarray) -> None:
    found = tensor_array(tensor_message("t", FLOAT32, array))
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@given(st.lists(st.text(), max_size=5))
def test_text_tensors_survive_the_message(texts: list[str]) -> None:
    array = np.array(texts, dtype=object)
    assert tensor_array(tensor_message("t", STRING, array)).tolist() == texts


@pytest.mark.parametrize(
    ("data_type", "shape", "data"),
    [
        (FLOAT32, (2**31, 2**31), b""),
        (FLOAT32, (1,), b"123"),
        (STRING, (2**31,), b""),
        (STRING, (1,), b"\x05\x00\x00\x00abc"),
        (STRING, (1,), b"\x00\x00\x00\x00x"),
        (6, (0,), b""),
    ],
)
def test_tensors_of_a_wrong_length_are_refused(data_type: int, shape: tuple[int, ...], data: bytes) -> None:
    message = tensor_pb2.Tensor(data_type=data_type, shape=shape, data=data)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        tensor_array(message)
