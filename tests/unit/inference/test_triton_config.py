"""Tests of the Triton load request."""

from __future__ import annotations

import json

import pytest

from flywheel_inference.models.triton_config import Backend, load_request, model_name


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_both_backends_get_the_same_tensors_batching_and_digest(backend: Backend) -> None:
    config, files = load_request("p.m.v3", 7, b"onnx", "abc", backend=backend, instances=2)
    parsed = json.loads(config)
    assert (parsed["name"], parsed["backend"]) == ("p.m.v3", backend)
    assert parsed["input"] == [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [7]}]
    assert parsed["output"] == [{"name": "SCORE", "data_type": "TYPE_FP32", "dims": [1]}]
    assert parsed["dynamic_batching"] == {}
    assert parsed["instance_group"] == [{"kind": "KIND_CPU", "count": 2}]
    assert parsed["parameters"]["sha256"] == {"string_value": "abc"}
    assert files["file:1/model.onnx"] == b"onnx"
    assert ("file:1/model.py" in files) == (backend == "python")


def test_model_py_compiles() -> None:
    _, files = load_request("p.m.v3", 7, b"onnx", "abc", backend="python")
    compile(files["file:1/model.py"], "model.py", "exec")


def test_model_names_contain_project_model_and_version() -> None:
    assert model_name("default", "late-arrival", 42) == "default.late-arrival.v42"
