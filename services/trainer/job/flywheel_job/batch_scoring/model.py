"""A release's model in this process: rows with features → answers, as the gateway computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa

from flywheel_common.arrays import Array, Floats, Mask
from flywheel_common.scoring.decision import decisions, scores
from flywheel_common.scoring.feature_block import FeatureBlock
from flywheel_common.scoring.input_tensors import MissingFeature, TensorBuilder, Tensors
from flywheel_common.scoring.output_values import output_values
from flywheel_common.scoring.preparation import BAD_SCORE, prepare
from flywheel_common.scoring.rules import ScoringRules
from flywheel_common.scoring.segments import segment_parts, threshold_of
from flywheel_job.batch_scoring.features import feature_block
from flywheel_job.errors import UnusableModel, UnusableTable

BATCH_ELEMENTS = 1 << 20
"""Most values of a batch's widest tensor, which bounds the memory of a batch."""
BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Answers:
    """Answers for the rows of a batch. `values` [rows, width] are calibrated, and NaN for a row without an
    answer, of which `reasons` says why; None: every row has an answer."""

    values: Floats
    scores: Floats
    decisions: Mask
    reasons: list[str | None] | None


class ReleaseModel:
    """Scores record batches with the model of one release."""

    def __init__(self, rules: ScoringRules, onnx: str, *, threads: int = 1) -> None:
        """`onnx` is the path of the model's file. Raises UnusableModel."""
        self.rules = rules
        self._builder = TensorBuilder(rules.signature)
        self._output = rules.signature.output
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                onnx, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UnusableModel(f"ONNX Runtime cannot load the model: {error}") from error
        has = {one.name for one in self._session.get_outputs()}
        if self._output.tensor not in has:
            raise UnusableModel(
                f"The model has no output {self._output.tensor}; it has: {', '.join(sorted(has))}."
            )

    @property
    def batch_rows(self) -> int:
        """Rows of a batch that bound the memory of its tensors."""
        widest = max(self._output.width, *(one.elements for one in self.rules.signature.input_tensors))
        return max(64, min(BATCH_ROWS, BATCH_ELEMENTS // widest))

    def features(self, batch: pa.RecordBatch) -> FeatureBlock:
        """The features of a batch that has the columns of the inputs. Raises WrongType."""
        return feature_block(self.rules.signature.inputs, batch, "the table")

    def answers(self, batch: pa.RecordBatch, block: FeatureBlock) -> Answers:
        """The answers for a batch that has the columns of the segment keys, with these features."""
        try:
            prepared = prepare(self.rules.policies, self._builder, block)
        except MissingFeature as error:
            raise UnusableTable(f"The features do not fit the model: {error}.") from error
        rows, kind = prepared.rows, self._output.kind
        values = np.full((block.rows, self._output.width), np.nan)
        if len(rows):
            values[rows] = self.rules.calibration.apply(self._run(prepared.tensors, len(rows)))
        found = scores(kind, values)
        with np.errstate(invalid="ignore"):
            decided = decisions(kind, found, self._thresholds(batch))
        finite = np.isfinite(values)
        finite = finite[:, 0] if values.shape[1] == 1 else finite.all(axis=1)
        if finite.all():
            return Answers(values, found, decided, None)
        reasons: list[str | None] = [None if good else BAD_SCORE for good in finite.tolist()]
        for row, why in prepared.refused.items():
            reasons[row] = why.reason
        values[~finite] = np.nan
        return Answers(values, np.where(finite, found, np.nan), decided & finite, reasons)

    def _thresholds(self, batch: pa.RecordBatch) -> float | Sequence[float]:
        rules = self.rules
        if not rules.segment_thresholds:
            return rules.threshold
        keys = rules.threshold_keys
        values = [batch.column(key).to_pylist() for key in keys]
        return [
            threshold_of(rules.segment_thresholds, segment_parts(keys, row), rules.threshold)
            for row in zip(*values, strict=True)
        ]

    def _run(self, tensors: Tensors, rows: int) -> Array:
        """[rows, width] of the output tensor. Raises UnusableModel."""
        try:
            (found,) = self._session.run([self._output.tensor], dict(tensors))
        except Exception as error:
            raise UnusableModel(f"The model cannot score a batch: {error}") from error
        return output_values(self._output, np.asarray(found), rows)
