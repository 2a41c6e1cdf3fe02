"""Streams rows through the models and keeps what the metrics need: labels, outputs, weights, slices.

The features of one batch at a time are in memory. A row leaves 16 bytes, 8 more for each of a champion and
weights, 4 for each slice column, and 48 instead of 16 if the model has classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from flywheel_common.arrays import Array, Floats, Ints
from flywheel_job.errors import TooManyRows, UnusableEvaluationSet
from flywheel_job.evaluation.outputs import BinaryOutputs, MulticlassOutputs, Outputs, RegressionOutputs
from flywheel_job.labelled_rows.labels import labels_for, weights_for
from flywheel_job.labelled_rows.model import Feed, ScoredModel, fed_rows
from flywheel_job.model_evaluation.params import EvaluationParams
from flywheel_job.model_file import BINARY, MULTICLASS

MAX_ROWS = 20_000_000
MAX_VALUES = 10_000
"""Distinct values of a slice column."""


@dataclass
class SliceColumn:
    """The values of a slice column, and for every row the number of its value."""

    name: str
    values: dict[str | None, int] = field(default_factory=dict)
    parts: list[Array] = field(default_factory=list)

    def add(self, column: pl.Series) -> None:
        """Raises UnusableEvaluationSet if there are too many distinct values."""
        texts = column.cast(pl.String).to_arrow(compat_level=pl.CompatLevel.oldest())
        encoded = texts.dictionary_encode("encode")
        numbers = [
            self.values.setdefault(value, len(self.values)) for value in encoded.dictionary.to_pylist()
        ]
        if len(self.values) > MAX_VALUES:
            raise UnusableEvaluationSet(
                f"Slice column {self.name!r} has more than {MAX_VALUES} distinct values."
            )
        self.parts.append(np.array(numbers, dtype=np.int32)[encoded.indices.to_numpy()])

    def rows_by_value(self) -> list[tuple[str | None, Ints]]:
        """The rows of each value, those with most rows first."""
        codes = np.concatenate(self.parts)
        order = np.argsort(codes, kind="stable")
        bounds = np.cumsum(np.bincount(codes, minlength=len(self.values)))[:-1]
        groups = zip(self.values, np.split(order, bounds), strict=True)
        return sorted(groups, key=lambda one: (-len(one[1]), one[0] or ""))


@dataclass(frozen=True)
class Collected:
    """Labels and outputs of all rows."""

    model: Outputs
    champion: Outputs | None
    weights: Floats
    slices: tuple[SliceColumn, ...]
    left_out: int
    """Rows that a tensor of a model cannot hold exactly."""

    def __len__(self) -> int:
        return len(self.model)


class _Parts:
    """What is kept of the outputs of one model."""

    def __init__(self, scored: ScoredModel) -> None:
        self._scored, self._parts = scored, list[Any]()

    def add(self, feed: Feed, labels: Array) -> None:
        outputs = self._scored.outputs(feed)
        of_classes = self._scored.model.kind == MULTICLASS
        self._parts.append(MulticlassOutputs.of(labels, outputs) if of_classes else outputs)

    def joined(self, labels: Array) -> Outputs:
        model = self._scored.model
        if model.kind == MULTICLASS:
            return MulticlassOutputs.joined(self._parts)
        scores = np.concatenate(self._parts)
        if model.kind == BINARY:
            return BinaryOutputs(labels, scores, model.threshold)
        return RegressionOutputs(labels, scores)


def collect(
    batches: Iterator[pl.DataFrame],
    model: ScoredModel,
    champion: ScoredModel | None,
    params: EvaluationParams,
    progress: Callable[[int], None],
) -> Collected:
    """Score all rows. Raises UnusableEvaluationSet without a row, TooManyRows, UnusableModel."""
    kind, classes = model.model.kind, model.model.classes
    parts = [_Parts(one) for one in (model, champion) if one is not None]
    files = [one.model for one in (model, champion) if one is not None]
    labels, weights = list[Array](), list[Floats]()
    slices = tuple(SliceColumn(name) for name in params.slices)
    rows = left_out = 0
    for batch in batches:
        fed = fed_rows(batch, files)
        frame = fed.frame
        left_out += fed.left_out
        rows += frame.height
        if rows > MAX_ROWS:
            raise TooManyRows(f"There are more than {MAX_ROWS:,} rows with a label.")
        if not frame.height:
            continue
        labels.append(labels_for(frame[params.label], kind, classes))
        if params.weight_column:
            weights.append(weights_for(frame[params.weight_column]))
        for one in slices:
            one.add(frame[one.name])
        for part, feed in zip(parts, fed.feeds, strict=True):
            part.add(feed, labels[-1])
        progress(rows)
    if not rows:
        unfit = f"; {left_out} rows do not fit the input tensors exactly" if left_out else ""
        raise UnusableEvaluationSet(f"There is no row with a label in the time range of the job{unfit}.")
    expected = np.concatenate(labels)
    used = np.concatenate(weights) if weights else np.ones(rows)
    if not used.any():
        raise UnusableEvaluationSet(f"Every weight in {params.weight_column!r} is 0.")
    outputs = [part.joined(expected) for part in parts]
    return Collected(outputs[0], outputs[1] if champion else None, used, slices, left_out)
