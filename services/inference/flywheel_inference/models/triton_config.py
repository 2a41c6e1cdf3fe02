"""Configuration and files with which Triton serves one ONNX model, in its ONNX Runtime or its Python backend.

Model contract (docs/architecture.md): input `INPUT` float32 [rows, inputs], output `SCORE` float32 [rows, 1].
"""

from __future__ import annotations

import json
from typing import Literal

Backend = Literal["onnxruntime", "python"]

INPUT = "INPUT"
SCORE = "SCORE"
MODEL_FILE = "model.onnx"
MAX_BATCH_ROWS = 1024
DIGEST = "sha256"
"""Config parameter with the hexadecimal SHA-256 digest of the model file."""
ONE_THREAD: dict[str, object] = {
    "intra_op_thread_count": {"string_value": "1"},
    "inter_op_thread_count": {"string_value": "1"},
}
THREADS: dict[Backend, dict[str, object]] = {"onnxruntime": ONE_THREAD, "python": {}}
"""Each instance uses one thread; Triton runs instances in parallel."""


def model_name(project: str, model: str, version: int) -> str:
    """The name of a model version inside Triton."""
    return f"{project}.{model}.v{version}"


def load_request(
    name: str, inputs: int, onnx: bytes, sha256: str, *, backend: Backend, instances: int = 1
) -> tuple[str, dict[str, bytes]]:
    """The config (JSON) and the files of a RepositoryModelLoad request. Batching is dynamic without a queue
    delay: requests that arrive while an instance is busy form its next batch.

    The digest is part of the config because Triton does not reload a model whose config is unchanged, even
    when its files changed.
    """
    config: dict[str, object] = {
        "name": name,
        "max_batch_size": MAX_BATCH_ROWS,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": [inputs]}],
        "output": [{"name": SCORE, "data_type": "TYPE_FP32", "dims": [1]}],
        "instance_group": [{"kind": "KIND_CPU", "count": instances}],
        "dynamic_batching": {},
        "parameters": {DIGEST: {"string_value": sha256}, **THREADS[backend]},
    }
    files = {f"file:1/{MODEL_FILE}": onnx}
    if backend == "python":
        config["backend"] = "python"
        files["file:1/model.py"] = PYTHON_MODEL.encode()
    else:
        config["backend"] = "onnxruntime"
        config["default_model_filename"] = MODEL_FILE
    return json.dumps(config), files


PYTHON_MODEL = '''\
"""Runs model.onnx with ONNX Runtime, for a Triton without an ONNX Runtime backend."""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        blocks = [pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy() for request in requests]
        rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        (scores,) = self._session.run(["SCORE"], {"INPUT": rows})
        scores = np.ascontiguousarray(scores, dtype=np.float32)
        answers, start = [], 0
        for block in blocks:
            part = scores[start : start + len(block)]
            start += len(block)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("SCORE", part)]))
        return answers
'''
