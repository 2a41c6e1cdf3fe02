"""ONNX models whose weights are in files of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from flywheel.onnx_signature import OnnxFile
from flywheel.onnx_weights import MAX_BYTES, one_file, weight_files
from tests.support.builders.onnx_models import constant_half, with_weights_outside


def outside(location: str, length: int = 4) -> Any:
    """A tensor [1] whose value is in another file."""
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(tensor: Any) -> bytes:
    """A model that adds the tensor in both branches of a condition: only subgraphs have it."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["W"], ["y"])], "branch", [], [out], [tensor])
    node = helper.make_node("If", ["c"], ["SCORE"], then_branch=branch, else_branch=branch)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    score = helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "graph", [condition], [score])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def test_weights_in_another_file_become_part_of_the_model(tmp_path: Path) -> None:
    file = with_weights_outside(constant_half(), tmp_path, "some.weights")
    assert ["some.weights"] == weight_files(file.read_bytes())
    (tmp_path / "elsewhere.onnx").write_bytes(one_file(file))
    (tmp_path / "some.weights").unlink()
    session = onnxruntime.InferenceSession(OnnxFile(tmp_path / "elsewhere.onnx").content)
    assert 0.5 == session.run(["SCORE"], {"INPUT": np.ones((1, 1), np.float32)})[0].item()


def test_weights_of_subgraphs_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(model_of(outside("w")))
    (tmp_path / "w").write_bytes(np.float32(7).tobytes())
    session = onnxruntime.InferenceSession(one_file(tmp_path / "a.onnx"))
    assert 7.0 == session.run(["SCORE"], {"c": np.array(False)})[0].item()


def test_a_file_with_its_weights_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(constant_half())
    assert constant_half() == one_file(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"no model")
    assert b"no model" == one_file(tmp_path / "b.onnx")
    with pytest.raises(ValueError, match="no model that ONNX Runtime can load"):
        OnnxFile(tmp_path / "b.onnx")


@pytest.mark.parametrize("location", ["../w", "/etc/passwd", "a/../../w", "", "..\\w"])
def test_weights_outside_of_the_folder_are_refused(location: str) -> None:
    with pytest.raises(ValueError, match="outside of the model's folder"):
        weight_files(model_of(outside(location)))


def test_links_to_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / "a.onnx").write_bytes(model_of(outside("w")))
    with pytest.raises(ValueError, match="cannot be read"):
        one_file(tmp_path / "model" / "a.onnx")


def test_more_weights_than_one_file_can_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(MAX_BYTES)):
        weight_files(model_of(outside("w", MAX_BYTES)))
    undeclared = outside("w")
    del undeclared.external_data[1]
    (tmp_path / "a.onnx").write_bytes(model_of(undeclared))
    (tmp_path / "w").touch()
    os.truncate(tmp_path / "w", MAX_BYTES)  # a sparse file
    with pytest.raises(ValueError, match=str(MAX_BYTES)):
        one_file(tmp_path / "a.onnx")


def test_weights_that_are_shorter_than_declared_are_refused(tmp_path: Path) -> None:
    file = with_weights_outside(constant_half(), tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        one_file(file)
    assert onnx.load(file, load_external_data=False).graph.initializer
