"""Small models and labelled rows for EVALUATE and EXPORT jobs, on a folder in place of S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from onnx import TensorProto, helper
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.model_file import BINARY, InputTensor, ModelFile
from flywheel_job.signature import Input
from tests.support.builders.onnx_models import graph_file

START = datetime(2026, 1, 1, tzinfo=UTC)
INPUTS = (Input("v__x", "FLOAT64"), Input("v__c", "STRING", ("AA", "BB")))
WEIGHTS = np.array([1.5, 0.8])
"""Of `v__x` and of the index of `v__c`, before the logistic function."""
OLD_WEIGHTS = np.array([0.2, -0.5])
"""Those of a worse model."""


@dataclass(frozen=True)
class Store:
    """The bucket `b` in a folder."""

    folder: Path

    @property
    def files(self) -> fs.FileSystem:
        return fs.SubTreeFileSystem(str(self.folder), fs.LocalFileSystem())

    def put_rows(self, rows: pl.DataFrame, name: str = "set", *, files: int = 1) -> str:
        """The address of the rows, in so many files."""
        (self.folder / "b" / name).mkdir(parents=True, exist_ok=True)
        size = -(-rows.height // files)
        for number in range(files):
            part = rows.slice(number * size, size)
            part.write_parquet(self.folder / "b" / name / f"part-{number}.parquet")
        return f"s3://b/{name}/"

    def put_model(self, content: bytes, **fields: Any) -> ModelFile:
        uri, digest = objects.put_by_digest(self.files, "s3://b/artifacts", content)
        defaults: dict[str, Any] = {
            "name": "projects/p/models/m/versions/1",
            "tensors": (InputTensor("INPUT", "FLOAT32", INPUTS),),
            "output": "SCORE",
            "kind": BINARY,
        }
        return ModelFile(uri=uri, sha256=digest, **{**defaults, **fields})


def linear(weights: np.ndarray, last: Sequence[str]) -> bytes:
    """INPUT `[rows, inputs]` · weights `[inputs, outputs]`, then the operators of `last`."""
    names = ["product", *(f"value{number}" for number in range(len(last) - 1)), "SCORE"]
    if not last:
        names = ["SCORE"]
    nodes = [helper.make_node("MatMul", ["INPUT", "W"], [names[0]])]
    for number, operator in enumerate(last):
        nodes.append(helper.make_node(operator, [names[number]], [names[number + 1]]))
    matrix = helper.make_tensor("W", TensorProto.FLOAT, weights.shape, weights.astype(np.float32).ravel())
    rows, width = weights.shape
    return graph_file(
        nodes,
        [("INPUT", TensorProto.FLOAT, ["rows", rows])],
        [("SCORE", TensorProto.FLOAT, ["rows", width])],
        [matrix],
    )


def network(sizes: Sequence[int], last: str = "Sigmoid", seed: int = 1) -> bytes:
    """Layers of these sizes with ReLU between them, and the operator `last` (empty: none) at the end."""
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], [], "INPUT"
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        weights = (rng.normal(size=(inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32)
        bias = rng.normal(size=outputs).astype(np.float32) * 0.1
        for name, array in ((f"w{number}", weights), (f"b{number}", bias)):
            constants.append(helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel()))
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [f"g{number}"]))
        value = f"g{number}"
        if number < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{number}"]))
            value = f"r{number}"
    nodes.append(helper.make_node(last or "Identity", [value], ["SCORE"]))
    return graph_file(
        nodes,
        [("INPUT", TensorProto.FLOAT, ["rows", sizes[0]])],
        [("SCORE", TensorProto.FLOAT, ["rows", sizes[-1]])],
        constants,
    )


def logistic(weights: np.ndarray = WEIGHTS) -> bytes:
    return linear(weights[:, None], ["Sigmoid"])


def rows(count: int = 3000, seed: int = 5) -> pl.DataFrame:
    """Rows whose labels follow the logistic model; every tenth has no label."""
    rng = np.random.default_rng(seed)
    x, code = rng.normal(size=count), rng.integers(-1, 2, count)
    p = 1 / (1 + np.exp(-(x * WEIGHTS[0] + code * WEIGHTS[1])))
    label = (rng.random(count) < p).astype(np.int64)
    return pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(hours=n) for n in range(count)],
            "v__x": x,
            "v__c": [("ZZ", "AA", "BB")[one + 1] for one in code],
            "origin": [None if n % 50 == 0 else ("EWR", "JFK", "LGA")[n % 3] for n in range(count)],
            "weight": rng.integers(1, 4, count).astype(float),
            "label": [None if n % 10 == 9 else value for n, value in enumerate(label.tolist())],
        }
    )


def probability(frame: pl.DataFrame, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    """What the logistic model computes, from the columns."""
    code = frame["v__c"].replace_strict({"AA": 0, "BB": 1}, default=-1, return_dtype=pl.Int64).to_numpy()
    z = frame["v__x"].to_numpy() * weights[0] + code * weights[1]
    return np.asarray(1 / (1 + np.exp(-z)))
