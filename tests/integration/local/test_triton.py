"""Triton loads models from the load request and runs them in the environment of its Python backend."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from flywheel_local.triton import Triton

MODEL_PY = b"""
import os
import onnxruntime
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"))

    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, "INPUT").as_numpy() for request in requests]
        scores = [self.session.run(None, {"INPUT": x})[0] for x in inputs]
        return [pb.InferenceResponse([pb.Tensor("SCORE", values)]) for values in scores]
"""


def config(name: str) -> str:
    return json.dumps(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": 64,
            "input": [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [3]}],
            "output": [{"name": "SCORE", "data_type": "TYPE_FP32", "dims": [1]}],
        }
    )


def mean_of_inputs() -> bytes:
    node = helper.make_node("ReduceMean", ["INPUT"], ["SCORE"], axes=[1], keepdims=1)
    inputs = [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["rows", 3])]
    outputs = [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["rows", 1])]
    model = helper.make_model(
        helper.make_graph([node], "mean", inputs, outputs), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_a_loaded_model_serves_while_a_broken_one_fails_to_load(triton: Triton) -> None:
    client = InferenceServerClient(triton.grpc_url)
    try:
        files = {"file:1/model.py": MODEL_PY, "file:1/model.onnx": mean_of_inputs()}
        client.load_model("mean", config=config("mean"), files=files)
        values = np.arange(15, dtype=np.float32).reshape(5, 3)
        tensor = InferInput("INPUT", [5, 3], "FP32")
        tensor.set_data_from_numpy(values)
        answer = client.infer("mean", [tensor]).as_numpy("SCORE")
        assert [1.0, 4.0, 7.0, 10.0, 13.0] == answer.ravel().tolist()

        with pytest.raises(InferenceServerException, match="SyntaxError"):
            client.load_model("broken", config=config("broken"), files={**files, "file:1/model.py": b"x = "})
        assert client.is_model_ready("mean")
        client.unload_model("mean")
    finally:
        client.close()
