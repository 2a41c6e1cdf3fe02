"""An ONNX model with its calibration: the input tensors of rows, and their calibrated outputs."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pyarrow import fs

from flywheel_common.arrays import Floats
from flywheel_job import objects
from flywheel_job.errors import UnusableEvaluationSet, UnusableModel
from flywheel_job.evaluation.calibration import calibration_from_json
from flywheel_job.model_file import BINARY, MULTICLASS, InputTensor, ModelFile
from flywheel_job.recipes.dataset import encode
from flywheel_job.scoring import open_session

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "INT64": np.int64,
    "FLOAT32": np.float32,
    "FLOAT64": np.float64,
}
Feed = dict[str, npt.NDArray[Any]]


def read_model(store: fs.FileSystem, model: ModelFile) -> bytes:
    """The graph. Raises UnusableModel if the stored bytes do not match the digest."""
    content = objects.read(store, model.uri)
    if hashlib.sha256(content).hexdigest() != model.sha256:
        raise UnusableModel(f"The stored graph of {model.name} does not match its digest.")
    return content


def feed_of(frame: pl.DataFrame, tensors: tuple[InputTensor, ...]) -> Feed:
    """The input tensors of rows.

    Raises UnusableEvaluationSet for a column of another type, and for a null where the tensor has none.
    """
    try:
        return {one.name: _tensor(frame, one) for one in tensors}
    except pl.exceptions.PolarsError as error:
        raise UnusableEvaluationSet(f"A column has another type than the model's input: {error}") from error


def _tensor(frame: pl.DataFrame, tensor: InputTensor) -> npt.NDArray[Any]:
    if tensor.data_type == "STRING":
        columns = [frame[one.name].cast(pl.String).fill_null("").to_numpy() for one in tensor.inputs]
        values: npt.NDArray[Any] = np.stack(columns, axis=1).astype(object)
    else:
        values = encode(frame, tensor.inputs, np.float32 if tensor.data_type == "FLOAT32" else np.float64)
        if tensor.data_type in ("BOOL", "INT64") and np.isnan(values).any():
            name = tensor.inputs[int(np.isnan(values).any(axis=0).argmax())].name
            raise UnusableEvaluationSet(
                f"Column {name!r} has nulls, and tensor {tensor.name} is {tensor.data_type}, which has none."
            )
        values = values.astype(DTYPES[tensor.data_type])
    return values[:, 0] if tensor.flat else values


class ScoredModel:
    """A loaded model. `threads` is the number of CPUs that it computes with."""

    def __init__(self, model: ModelFile, content: bytes, threads: int = 1) -> None:
        """Raises UnusableModel if ONNX Runtime cannot load it."""
        self.model = model
        self._calibration = calibration_from_json(model.calibration) if model.calibration else None
        try:
            self._session = open_session(content, threads=threads)
        except Exception as error:
            raise UnusableModel(f"ONNX Runtime cannot load {model.name}: {error}") from error

    def outputs(self, feed: Feed) -> Floats:
        """Calibrated outputs: `[rows]`, or `[rows, classes]` of a MULTICLASS model."""
        raw = self.raw(feed)
        return raw if self._calibration is None else self._calibration.apply(raw)

    def raw(self, feed: Feed) -> Floats:
        """Outputs before calibration. Raises UnusableModel if they are no probabilities or numbers."""
        found = self.unchecked(feed)
        width = len(self.model.classes) if self.model.kind == MULTICLASS else 1
        if self.model.kind == BINARY and found.shape[1] == 2:
            found = found[:, 1:]
        if found.shape[1] != width:
            raise UnusableModel(
                f"{self.model.name} has {found.shape[1]} outputs per row, not {width} as its signature says."
            )
        probabilities = self.model.kind in (BINARY, MULTICLASS)
        if not np.isfinite(found).all() or (probabilities and ((found < 0) | (found > 1)).any()):
            wanted = "between 0 and 1" if probabilities else "finite"
            raise UnusableModel(f"{self.model.name} has outputs that are not {wanted}.")
        return found if self.model.kind == MULTICLASS else found[:, 0]

    def unchecked(self, feed: Feed) -> Floats:
        """The output tensor as `[rows, values]`, whatever its values are. Raises UnusableModel."""
        try:
            found = np.asarray(self._session.run([self.model.output], feed)[0], dtype=np.float64)
        except Exception as error:
            raise UnusableModel(f"{self.model.name} cannot score the rows: {error}") from error
        return found.reshape(len(next(iter(feed.values()))), -1)
