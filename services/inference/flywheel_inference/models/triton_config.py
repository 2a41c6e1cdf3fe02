"""Configuration and files with which Triton serves one ONNX model, in its ONNX Runtime or its Python backend.

The tensors are those of the version's signature (docs/architecture.md, The model's contract); the output has
the type and shape of the golden rows' output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from flywheel_common.arrays import Array
from flywheel_common.signature import BOOL, FLOAT32, FLOAT64, INT64, STRING, Signature
from flywheel_inference.releases.serving_policy import DEFAULT_PLACEMENT, Placement

Backend = Literal["onnxruntime", "python"]

MODEL_FILE = "model.onnx"
MODEL_PATH = f"file:1/{MODEL_FILE}"
"""Parameter with the model file in a RepositoryModelLoad request."""
DIGEST = "sha256"
"""Config parameter with the hexadecimal SHA-256 digest of the model file."""
ONE_THREAD: dict[str, object] = {
    "intra_op_thread_count": {"string_value": "1"},
    "inter_op_thread_count": {"string_value": "1"},
}
THREADS: dict[Backend, dict[str, object]] = {"onnxruntime": ONE_THREAD, "python": {}}
"""Each instance uses one thread; Triton runs instances in parallel."""
TYPES = {
    BOOL: "TYPE_BOOL",
    INT64: "TYPE_INT64",
    FLOAT32: "TYPE_FP32",
    FLOAT64: "TYPE_FP64",
    STRING: "TYPE_STRING",
}
"""Tensor type → Triton's name."""


def model_name(project: str, model: str, version: int) -> str:
    """The name of a model version inside Triton."""
    return f"{project}.{model}.v{version}"


def load_request(
    name: str,
    signature: Signature,
    golden_output: Array,
    sha256: str,
    *,
    backend: Backend,
    placement: Placement = DEFAULT_PLACEMENT,
) -> tuple[str, dict[str, bytes]]:
    """The config (JSON) of a RepositoryModelLoad request and its files beside the model. Batching is dynamic,
    without a queue delay unless `placement` has one: requests that arrive while an instance is busy form its
    next batch.
    `golden_output` [rows, …] float32 or float64: type and shape of the output.

    The digest is part of the config because Triton does not reload a model whose config is unchanged, even
    when its files changed.
    """
    delay = placement.max_queue_delay_micros
    output_type = FLOAT64 if golden_output.dtype.itemsize == 8 else FLOAT32
    config: dict[str, object] = {
        "name": name,
        "max_batch_size": placement.max_batch_rows,
        "input": [_tensor(t.name, t.data_type, t.shape) for t in signature.input_tensors],
        "output": [_tensor(signature.output.tensor, output_type, golden_output.shape[1:])],
        "instance_group": [
            {"kind": "KIND_GPU" if placement.gpu else "KIND_CPU", "count": max(placement.instances, 1)}
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": delay} if delay else {},
        "parameters": {DIGEST: {"string_value": sha256}, **THREADS[backend]},
    }
    files: dict[str, bytes] = {}
    if backend == "python":
        config["backend"] = "python"
        files["file:1/model.py"] = PYTHON_MODEL.encode()
    else:
        config["backend"] = "onnxruntime"
        config["default_model_filename"] = MODEL_FILE
    return json.dumps(config), files


def _tensor(name: str, data_type: int, shape: Sequence[int]) -> dict[str, object]:
    tensor: dict[str, object] = {"name": name, "data_type": TYPES[data_type], "dims": list(shape) or [1]}
    if not shape:
        # Triton has no tensor of shape [rows]: its callers send [rows, 1], and the model gets [rows].
        tensor["reshape"] = {"shape": []}
    return tensor


PYTHON_MODEL = '''\
"""Runs model.onnx with ONNX Runtime, for a Triton without an ONNX Runtime backend."""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


def check(kind, declared, found):
    """Refuses a model whose tensors differ from the config, as the ONNX Runtime backend does."""
    declared = {tensor["name"]: tensor["data_type"] for tensor in declared}
    found = {tensor.name: TYPES.get(tensor.type, tensor.type) for tensor in found}
    if kind == "outputs":
        found = {name: kind for name, kind in found.items() if name in declared}
    if found != declared:
        raise pb_utils.TritonModelException(f"the model has the {kind} {found}, its signature has {declared}")


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise pb_utils.TritonModelException("the Python environment has no ONNX Runtime for GPUs")
            device = {"device_id": args["model_instance_device_id"]}
            providers = [("CUDAExecutionProvider", device), *providers]
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        check("inputs", config["input"], self._session.get_inputs())
        check("outputs", config["output"], self._session.get_outputs())
        self._inputs = [(tensor["name"], tensor["data_type"] == "TYPE_STRING") for tensor in config["input"]]
        self._output = config["output"][0]["name"]

    def execute(self, requests):
        feeds, sizes = {}, []
        for name, is_text in self._inputs:
            blocks = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            sizes = [len(block) for block in blocks]
            rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
            if is_text:
                texts = [text.decode() for text in rows.ravel()]
                rows = np.array(texts, dtype=object).reshape(rows.shape)
            feeds[name] = rows
        (values,) = self._session.run([self._output], feeds)
        answers, start = [], 0
        for size in sizes:
            part = np.ascontiguousarray(values[start : start + size])
            start += size
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(self._output, part)]))
        return answers
'''
