"""An ONNX model with its calibration: the input tensors of rows, and their calibrated outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pyarrow import fs

from flywheel_common.arrays import Floats
from flywheel_common.errors import WrongType
from flywheel_common.scoring.input_tensors import MissingFeature, TensorBuilder
from flywheel_common.signature import InputSpec, Signature, TensorSpec
from flywheel_job import objects
from flywheel_job.batch_scoring.features import feature_block
from flywheel_job.errors import UnusableEvaluationSet, UnusableModel
from flywheel_job.evaluation.calibration import calibration_from_json
from flywheel_job.model_file import BINARY, MULTICLASS, ModelFile
from flywheel_job.scoring import open_session
from flywheel_protos.types.v1 import value_pb2

Feed = Mapping[str, npt.NDArray[Any]]
"""Input tensors by name."""


def read_model(store: fs.FileSystem, model: ModelFile) -> bytes:
    """The graph. Raises UnusableModel if the stored bytes do not match the digest."""
    content = objects.read(store, model.uri)
    if hashlib.sha256(content).hexdigest() != model.sha256:
        raise UnusableModel(f"The stored graph of {model.name} does not match its digest.")
    return content


@dataclass(frozen=True)
class FedRows:
    """Rows with the input tensors of each model. `left_out` is the number of rows that a tensor of a model
    cannot hold exactly, which a gateway does not let the model answer (INPUT_NOT_EXACT)."""

    frame: pl.DataFrame
    feeds: tuple[Feed, ...]
    left_out: int


def fed_rows(frame: pl.DataFrame, models: Sequence[ModelFile]) -> FedRows:
    """The input tensors as the gateway builds them. Raises UnusableEvaluationSet for a column of another
    type."""
    batch = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks().to_batches()
    if not batch:
        return FedRows(frame, (), 0)
    try:
        built = []
        for model in models:
            signature = signature_of(model)
            built.append(
                TensorBuilder(signature).build(feature_block(signature.inputs, batch[0], "the rows"))
            )
    except (MissingFeature, WrongType) as error:
        raise UnusableEvaluationSet(f"A column has another type than the model's input: {error}") from error
    unfit = sorted({row for inputs in built for row in inputs.unfit})
    if not unfit:
        return FedRows(frame, tuple(inputs.tensors for inputs in built), 0)
    kept = np.delete(np.arange(frame.height), unfit)
    feeds = tuple({name: tensor[kept] for name, tensor in inputs.tensors.items()} for inputs in built)
    return FedRows(frame[kept], feeds, len(unfit))


def signature_of(model: ModelFile) -> Signature:
    """The inputs of a model in the form that all services share."""
    return Signature(
        tuple(
            InputSpec(
                one.name, value_pb2.DataType.Value(f"DATA_TYPE_{one.data_type}"), one.vocabulary, tensor.name
            )
            for tensor in model.tensors
            for one in tensor.inputs
        ),
        tuple(
            TensorSpec(
                one.name,
                value_pb2.DataType.Value(f"DATA_TYPE_{one.data_type}"),
                () if one.flat else (len(one.inputs),),
            )
            for one in model.tensors
        ),
    )


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
            found = np.asarray(self._session.run([self.model.output], dict(feed))[0], dtype=np.float64)
        except Exception as error:
            raise UnusableModel(f"{self.model.name} cannot score the rows: {error}") from error
        return found.reshape(len(next(iter(feed.values()))), -1)
