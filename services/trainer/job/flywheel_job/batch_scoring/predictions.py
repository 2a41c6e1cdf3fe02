"""Predictions as Arrow tables: the carried columns of the table, then the answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_job.batch_scoring.model import Answers
from flywheel_job.batch_scoring.spec import DECISION, ERROR_REASON, PREDICTED_CLASS, SCORE_COLUMN, VALUES

WITH_VALUES = (OutputKind.MULTICLASS, OutputKind.VECTOR)
"""Kinds of output with more values than the score."""


def prediction_schema(output: OutputSpec, carried: Sequence[pa.Field]) -> pa.Schema:
    """The columns of predictions. `score` is null for VECTOR models; `decision` only exists for BINARY and
    MULTICLASS models, and `predicted_class` for MULTICLASS models; both are as the gateway answers."""
    fields = list(carried)
    if output.kind is not OutputKind.VECTOR:
        fields.append(pa.field(SCORE_COLUMN, pa.float64()))
    if output.kind in (OutputKind.BINARY, OutputKind.MULTICLASS):
        fields.append(pa.field(DECISION, pa.bool_()))
    if output.kind is OutputKind.MULTICLASS:
        fields.append(pa.field(PREDICTED_CLASS, pa.string()))
    if output.kind in WITH_VALUES:
        fields.append(pa.field(VALUES, pa.list_(pa.float64(), output.width)))
    return pa.schema([*fields, pa.field(ERROR_REASON, pa.string())])


def predictions(
    output: OutputSpec, schema: pa.Schema, batch: pa.RecordBatch, answers: Answers
) -> pa.RecordBatch:
    """The predictions for a batch. A row without an answer has nulls and its `error_reason`."""
    rows = batch.num_rows
    failed = None if answers.reasons is None else np.array([why is not None for why in answers.reasons])
    made = {
        SCORE_COLUMN: lambda: pa.array(answers.scores, pa.float64(), mask=failed),
        DECISION: lambda: pa.array(answers.decisions, pa.bool_(), mask=failed),
        PREDICTED_CLASS: lambda: _classes(output, answers),
        VALUES: lambda: _values(output, answers, failed),
        ERROR_REASON: lambda: (
            pa.nulls(rows, pa.string()) if answers.reasons is None else pa.array(answers.reasons, pa.string())
        ),
    }
    arrays = [
        made[field.name]() if field.name in made else batch.column(field.name).cast(field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _classes(output: OutputSpec, answers: Answers) -> pa.Array:
    """The most probable class of a row whose score reaches the threshold, else null."""
    with np.errstate(invalid="ignore"):
        best = np.argmax(answers.values, axis=1)
    names = pa.array(output.class_names, pa.string())
    return names.take(pa.array(best, pa.int64(), mask=~answers.decisions))


def _values(output: OutputSpec, answers: Answers, failed: np.ndarray | None) -> pa.Array:
    flat = pa.array(answers.values.reshape(-1), pa.float64())
    mask = None if failed is None else pa.array(failed)
    return pa.FixedSizeListArray.from_arrays(flat, output.width, mask=mask)
