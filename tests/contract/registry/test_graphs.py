"""Model files in the worker process: what it reports, and that a hostile file cannot exceed its bounds."""

from __future__ import annotations

import ast
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.signature import (
    FLOAT32,
    FLOAT64,
    INT64,
    STRING,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from flywheel_common.storage.objects import content_key
from flywheel_common.tensors import Tensor
from flywheel_registry.artifacts.graph import GraphReport, report_problems
from flywheel_registry.models.version import Artifact, GoldenRows, ModelVersion
from flywheel_registry.store.onnxruntime.graphs import WORKER, OnnxGraphs
from tests.support.builders.onnx_models import constant_half, graph_file, three_classes

FLOAT = TensorProto.FLOAT
ONE = Signature(inputs=(InputSpec("v__a", FLOAT64),))
CLASSES = Signature(
    inputs=(InputSpec("v__a", FLOAT64), InputSpec("v__b", FLOAT64), InputSpec("v__c", INT64)),
    tensors=(TensorSpec("AB", FLOAT32, (2,)), TensorSpec("CODE", INT64, ())),
    output=OutputSpec(OutputKind.MULTICLASS, "P", class_names=("x", "y", "z")),
)


def golden(rows: dict[str, tuple[int, Any]], output: tuple[str, Any]) -> GoldenRows:
    tensors = tuple(Tensor.of(name, kind, np.array(values)) for name, (kind, values) in rows.items())
    return GoldenRows(tensors, Tensor.of(output[0], FLOAT32, np.array(output[1])))


HALF = golden({"INPUT": (FLOAT32, [[1.0], [2.0]])}, ("SCORE", [0.5, 0.5]))


async def run(
    content: bytes, rows: GoldenRows = HALF, signature: Signature = ONE, *, seconds: float = 30.0
) -> GraphReport:
    objects, sha256 = MemoryObjectStore(), hashlib.sha256(content).hexdigest()
    await objects.put(content_key(sha256), content)
    version = ModelVersion(
        "projects/p/models/m",
        signature=signature,
        golden_rows=rows,
        artifacts=(Artifact("model.onnx", len(content), sha256, stored=True),),
    )
    return await OnnxGraphs(objects, memory_bytes=4 << 30, seconds=seconds).run(version)


async def problems(content: bytes, rows: GoldenRows = HALF, signature: Signature = ONE) -> Sequence[str]:
    return report_problems(await run(content, rows, signature), signature, rows)


async def test_a_model_that_reproduces_its_golden_rows_passes() -> None:
    assert [] == await problems(constant_half())
    logits = np.array([[0.5, -1.0, 2.0], [1.5, 0.0, -1.0]])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = golden({"AB": (FLOAT32, logits[:, :2]), "CODE": (INT64, [2, -1])}, ("P", expected))
    assert [] == await problems(three_classes(), rows, CLASSES)


async def test_texts_reach_the_graph() -> None:
    encode = helper.make_node(
        "LabelEncoder",
        ["WORD"],
        ["Y"],
        domain="ai.onnx.ml",
        keys_strings=["ü", "lo ng"],
        values_floats=[1.5, -2.0],
        default_float=0.0,
    )
    file = onnx.load_from_string(
        graph_file([encode], [("WORD", TensorProto.STRING, ["rows"])], [("Y", FLOAT, ["rows"])])
    )
    file.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    signature = Signature(
        inputs=(InputSpec("v__word", STRING),),
        tensors=(TensorSpec("WORD", STRING, ()),),
        output=OutputSpec(OutputKind.REGRESSION, "Y"),
    )
    rows = golden({"WORD": (STRING, ["lo ng", "ü", ""])}, ("Y", [-2.0, 1.5, 0.0]))
    assert [] == await problems(file.SerializeToString(), rows, signature)


async def test_bytes_that_are_no_model_are_a_problem() -> None:
    (problem,) = await problems(b"hello")
    assert problem.startswith("The model file cannot be loaded: ")


async def test_every_difference_to_the_signature_is_listed() -> None:
    file = graph_file(
        [helper.make_node("MatMul", ["AB", "W"], ["Q"])],
        [("AB", TensorProto.DOUBLE, ["rows", 3]), ("W", TensorProto.DOUBLE, [3, 4])],
        [("Q", TensorProto.DOUBLE, ["rows", 4])],
    )
    rows = golden({"AB": (FLOAT32, [[0.0, 0.0]]), "CODE": (INT64, [0])}, ("P", [[0.2, 0.3, 0.5]]))
    assert [
        "Input AB has shape [rows, 3], the signature declares [rows, 2].",
        "Input AB has type FLOAT64, the signature declares FLOAT32.",
        "The graph has no input CODE, which the signature declares.",
        "The graph needs the input W, which the signature lacks.",
        "The graph has no output P, only Q.",
    ] == await problems(file, rows, CLASSES)


async def test_a_graph_with_a_fixed_number_of_rows_is_a_problem() -> None:
    file = graph_file(
        [helper.make_node("Sigmoid", ["INPUT"], ["SCORE"])],
        [("INPUT", FLOAT, [1, 1])],
        [("SCORE", FLOAT, [1, 3])],
    )
    assert [
        "Input INPUT has shape [1, 1], the signature declares [rows, 1].",
        "Output SCORE has shape [1, 3], a BINARY output needs [rows] or [rows, 1] or [rows, 2].",
    ] == await problems(file)


async def test_golden_rows_that_differ_are_named_with_their_values() -> None:
    rows = golden({"INPUT": (FLOAT32, [[1.0], [2.0]])}, ("SCORE", [0.5, 0.75]))
    assert ["The model does not reproduce 1 of 2 golden rows: row 1: 0.5 instead of 0.75."] == await problems(
        constant_half(), rows
    )


async def test_a_model_that_runs_too_long_is_killed() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Sin", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", FLOAT, None),
        ],
    )
    file = graph_file(
        [helper.make_node("Loop", ["n", "", "INPUT"], ["SCORE"], body=body)],
        [("INPUT", FLOAT, ["rows", 1])],
        [("SCORE", FLOAT, ["rows", 1])],
        [helper.make_tensor("n", TensorProto.INT64, [], [1 << 60])],
    )
    began = time.monotonic()
    report = await run(file, seconds=3.0)
    assert "3 s" in report.problem
    assert time.monotonic() - began < 20


async def test_a_model_that_needs_too_much_memory_is_a_problem() -> None:
    file = graph_file(
        [
            helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["INPUT", "zero"], ["SCORE"]),
        ],
        [("INPUT", FLOAT, ["rows", 1])],
        [("SCORE", FLOAT, ["rows", 1])],
        [helper.make_tensor("huge", TensorProto.INT64, [1], [1 << 32])],
    )
    report = await run(file)
    assert report.output is None
    assert report.problem or report.run_problem


def test_the_worker_imports_nothing_of_the_registry() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(WORKER.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "relative").split(".")[0])
    standard = {"ctypes", "json", "resource", "signal", "sys", "pathlib", "typing"}
    assert standard | {"numpy", "onnx", "onnxruntime"} == imported
