"""Responses of the model server that are no scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from flywheel_common.scoring.errors import WrongShape
from flywheel_inference.store.triton.model_server import _array

Output = pb.ModelInferResponse.InferOutputTensor


def response(raw: list[bytes], *outputs: Any) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(raw_output_contents=raw, outputs=outputs)


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", "<f4"), ("FP64", "<f8")])
def test_one_float_tensor_is_read(datatype: str, dtype: str) -> None:
    raw = np.array([0.25, 0.5, 1.5, 2.5], dtype).tobytes()
    found = _array(response([raw], Output(datatype=datatype, shape=[2, 2])), "m")
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), [[0.25, 0.5], [1.5, 2.5]])


@pytest.mark.parametrize(
    ("raw", "outputs"),
    [
        ([], ()),
        ([b"\0" * 8], ()),
        ([], (Output(datatype="FP32", shape=[2, 1]),)),
        ([b"\0" * 4], (Output(datatype="FP32", shape=[2, 1]),)),
        ([b"\0" * 16], (Output(datatype="FP32", shape=[2, 1]),)),
        ([b"\0" * 8] * 2, (Output(datatype="FP32", shape=[2, 1]),) * 2),
        ([b"\0" * 8], (Output(datatype="INT32", shape=[2, 1]),)),
    ],
)
def test_any_other_response_is_refused(raw: list[bytes], outputs: tuple[Any, ...]) -> None:
    with pytest.raises(WrongShape, match="is expected"):
        _array(response(raw, *outputs), "m")
