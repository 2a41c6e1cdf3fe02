"""Tests of the Triton load request."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flywheel_common.signature import (
    BOOL,
    FLOAT32_VECTOR,
    FLOAT64,
    INT64,
    STRING,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from flywheel_inference.models.triton_config import Backend, load_request, model_name
from flywheel_inference.releases.serving_policy import Placement

SEVEN = Signature(tuple(InputSpec(f"a__x{i}", FLOAT64) for i in range(7)))
ONE = np.zeros((3, 1), np.float32)


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_both_backends_get_the_same_tensors_batching_and_digest(backend: Backend) -> None:
    config, files = load_request("p.m.v3", SEVEN, ONE, "abc", backend=backend)
    parsed = json.loads(config)
    assert (parsed["name"], parsed["backend"]) == ("p.m.v3", backend)
    assert parsed["input"] == [{"name": "INPUT", "data_type": "TYPE_FP32", "dims": [7]}]
    assert parsed["output"] == [{"name": "SCORE", "data_type": "TYPE_FP32", "dims": [1]}]
    assert parsed["dynamic_batching"] == {}
    assert parsed["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert parsed["parameters"]["sha256"] == {"string_value": "abc"}
    assert list(files) == (["file:1/model.py"] if backend == "python" else [])


def test_every_tensor_of_the_signature_is_in_the_config_with_its_type_and_shape() -> None:
    signature = Signature(
        inputs=(
            InputSpec("a__text", STRING, tensor="text"),
            InputSpec("a__count", INT64, tensor="count"),
            InputSpec("a__flag", BOOL, tensor="flag"),
            InputSpec("a__v", FLOAT32_VECTOR, tensor="v", vector_size=6),
        ),
        tensors=(
            TensorSpec("text", STRING, (1,)),
            TensorSpec("count", INT64, ()),
            TensorSpec("flag", BOOL, (1,)),
            TensorSpec("v", FLOAT64, (2, 3)),
        ),
        output=OutputSpec(OutputKind.MULTICLASS, "probabilities", class_names=("a", "b", "c")),
    )
    config, _ = load_request("m", signature, np.zeros((3, 3)), "", backend="onnxruntime")
    assert json.loads(config)["input"] == [
        {"name": "text", "data_type": "TYPE_STRING", "dims": [1]},
        {"name": "count", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}},
        {"name": "flag", "data_type": "TYPE_BOOL", "dims": [1]},
        {"name": "v", "data_type": "TYPE_FP64", "dims": [2, 3]},
    ]
    assert json.loads(config)["output"] == [{"name": "probabilities", "data_type": "TYPE_FP64", "dims": [3]}]


def test_model_py_compiles() -> None:
    _, files = load_request("p.m.v3", SEVEN, ONE, "abc", backend="python")
    compile(files["file:1/model.py"], "model.py", "exec")


def test_model_names_contain_project_model_and_version() -> None:
    assert model_name("default", "late-arrival", 42) == "default.late-arrival.v42"


def test_a_placement_chooses_processor_instances_and_batches() -> None:
    placement = Placement(gpu=True, instances=3, max_batch_rows=64, max_queue_delay_micros=500)
    config, files = load_request("m", SEVEN, ONE, "", backend="python", placement=placement)
    parsed = json.loads(config)
    assert parsed["instance_group"] == [{"kind": "KIND_GPU", "count": 3}]
    assert parsed["max_batch_size"] == 64
    assert parsed["dynamic_batching"] == {"max_queue_delay_microseconds": 500}
    compile(files["file:1/model.py"], "model.py", "exec")


def test_versions_with_different_placements_are_different_models() -> None:
    suffixes = {Placement(**changes).suffix for changes in ({}, {"gpu": True}, {"instances": 2})}
    assert len(suffixes) == 3 and "" in suffixes
    assert all(suffix == "" or suffix.startswith(".") for suffix in suffixes)
