"""Signatures that the SDK reads from ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from flywheel.onnx_signature import Feature, OnnxFile, SignatureError, generated_rows, output_spec
from flywheel_common.signature import FLOAT32, FLOAT64, INT64, STRING, InputSpec, OutputKind, TensorSpec
from tests.support.builders.onnx_models import constant_half, graph_file, three_classes

CODE = Feature("v__code", INT64)
A, B = Feature("v__a", FLOAT64), Feature("v__b", FLOAT64)


def opened(tmp_path: Path, content: bytes) -> OnnxFile:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    return OnnxFile(file)


def test_tensors_named_like_features_hold_them_and_one_holds_the_rest(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["v__code"], ["code"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["X", "code"], ["E"], axis=1),
    ]
    inputs = [("v__code", TensorProto.INT64, ["n", 1]), ("X", TensorProto.FLOAT, ["n", "k"])]
    graph = opened(tmp_path, graph_file(nodes, inputs, [("E", TensorProto.FLOAT, ["n", "m"])]))
    word = Feature("v__word", STRING, vocabulary=("x", "y"))
    vector = Feature("v__vector", 24, 3)
    signature = graph.signature([A, CODE, word, vector], output_spec("vector", "", (), "", 6))
    assert (TensorSpec("v__code", INT64, (1,)), TensorSpec("X", FLOAT32, (5,))) == signature.tensors
    assert (
        InputSpec("v__code", INT64, (), "v__code"),
        InputSpec("v__a", FLOAT64, (), "X"),
        InputSpec("v__word", STRING, ("x", "y"), "X"),
        InputSpec("v__vector", 24, (), "X", 3),
    ) == signature.inputs
    assert (OutputKind.VECTOR, "E", 6) == (
        signature.output.kind,
        signature.output.tensor,
        signature.output.size,
    )
    rows = generated_rows(signature)
    assert {-1.0, 0.0, 1.0} >= set(rows["X"][:, 1].tolist()), "indexes of the vocabulary"
    assert (16, 6) == graph.run(rows, "E").shape


def test_every_difference_is_listed(tmp_path: Path) -> None:
    graph = opened(tmp_path, three_classes())
    with pytest.raises(SignatureError) as caught:
        graph.signature([A, B, CODE], output_spec("multiclass", "Q", ("x", "y", "z"), "", 0))
    assert [
        "Input AB of type FLOAT32 has [2] elements per row, its features have 3: v__a, v__b, v__code.",
        "Input CODE is named like no feature: only one such input is allowed.",
        "The graph has no output Q of numbers, only P.",
    ] == sorted(caught.value.differences)


def test_features_that_a_tensor_cannot_hold_are_refused(tmp_path: Path) -> None:
    graph = opened(tmp_path, constant_half())
    with pytest.raises(SignatureError, match="v__word does not fit into tensor INPUT"):
        graph.signature([Feature("v__word", STRING)], output_spec("binary", "", (), "", 0))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model that ONNX Runtime can load"):
        opened(tmp_path, b"hello")


def test_generated_rows_are_the_same_at_each_call(tmp_path: Path) -> None:
    signature = opened(tmp_path, constant_half()).signature([A], output_spec("binary", "", (), "", 0))
    first, second = generated_rows(signature), generated_rows(signature)
    assert np.array_equal(first["INPUT"], second["INPUT"])
    assert (16, 1) == first["INPUT"].shape
