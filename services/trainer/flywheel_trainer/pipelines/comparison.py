"""Compares challenger and champion on the same held-out rows, each with its own inputs and calibration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flywheel_common.scoring.calibration import Temperature
from flywheel_common.scoring.output_values import output_values
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_job.evaluation.calibration import Calibration
from flywheel_job.evaluation.metrics import evaluate
from flywheel_job.evaluation.tasks import multiclass_metrics, regression_metrics
from flywheel_job.launch import LABEL, TIME
from flywheel_job.recipes.tasks import TASK_OF
from flywheel_job.scoring import onnx_outputs, open_session
from flywheel_job.signature import Input
from flywheel_trainer.jobs.model_report import calibration_of, output_of
from flywheel_trainer.jobs.ports import TrainingSet

if TYPE_CHECKING:
    import polars as pl

HEADLINES = {
    OutputKind.BINARY: "AUC {auc:.4f}, log-loss {log_loss:.4f}",
    OutputKind.MULTICLASS: "accuracy {accuracy:.4f}, log-loss {log_loss:.4f}",
    OutputKind.REGRESSION: "RMSE {rmse:.4g}, R2 {r2:.4f}",
}
"""The metrics of an output in one line."""


@dataclass(frozen=True)
class ChampionModel:
    """The model in production: its graph, inputs, calibration and output."""

    version: str
    model: bytes
    inputs: tuple[Input, ...]
    calibration: Calibration | Temperature | None = None
    """None: the outputs are used as they are."""
    release: str = ""
    output: OutputSpec = field(default_factory=OutputSpec)


@dataclass(frozen=True)
class Comparison:
    """Metrics of both models on the evaluation rows.

    Those of the champion are empty if there is none, if its output is another one, or if the training set
    lacks one of its inputs.
    """

    challenger: Mapping[str, float]
    champion: Mapping[str, float]
    note: str


Compare = Callable[[TrainingSet, Mapping[str, Any], bytes, ChampionModel | None], Awaitable[Comparison]]


class TableReader(Protocol):
    """Reads columns of the Parquet files of a training set, in the given order, each once.

    Absent columns are left out. Raises FileNotFoundError if there is nothing at `uri`. Blocks.
    """

    def __call__(self, uri: str, columns: list[str]) -> pl.DataFrame: ...


def comparison_with(read: TableReader) -> Compare:
    """A Compare that reads training sets with `read` and runs in a thread."""

    async def run(
        training_set: TrainingSet,
        report: Mapping[str, Any],
        challenger: bytes,
        champion: ChampionModel | None,
    ) -> Comparison:
        return await asyncio.to_thread(_compare, read, training_set.uri, report, challenger, champion)

    return run


def _compare(
    read: TableReader, uri: str, report: Mapping[str, Any], challenger: bytes, champion: ChampionModel | None
) -> Comparison:
    inputs = tuple(Input(i["name"], i["data_type"], tuple(i["vocabulary"])) for i in report["inputs"])
    wanted = {i.name: None for i in (*inputs, *(champion.inputs if champion else ()))}
    weight_column = report.get("weight_column", "")  # absent in reports of older versions
    if weight_column:
        wanted[weight_column] = None
    # Imported here: polars takes 20 MiB, which a service needs that compares models.
    from flywheel_job.recipes.dataset import Split, in_time_order, weights_of
    from flywheel_job.recipes.labels import task_labels

    frame = in_time_order(read(uri, [*wanted, LABEL, TIME]))
    split = Split(**report["split"])
    rows = frame.slice(split.calibration_end, split.rows - split.calibration_end)
    output = output_of(report)
    labels = task_labels(frame, TASK_OF[output.kind])[split.calibration_end :]
    weights = weights_of(rows, weight_column)
    calibration = calibration_of(report, output.kind)
    ours = _metrics(rows, (labels, weights), challenger, inputs, (output, calibration))
    if champion is None:
        return Comparison(ours, {}, "no champion to compare with")
    if problem := _incomparable(frame, output, champion):
        return Comparison(ours, {}, f"champion {champion.version} not compared: {problem}")
    served = champion.output, champion.calibration
    theirs = _metrics(rows, (labels, weights), champion.model, champion.inputs, served)
    summary = HEADLINES[output.kind].format_map(theirs)
    return Comparison(ours, theirs, f"champion {champion.version} on the same {rows.height} rows: {summary}")


def _incomparable(frame: pl.DataFrame, output: OutputSpec, champion: ChampionModel) -> str:
    """Why the champion cannot be evaluated on the rows; or empty."""
    theirs = champion.output
    if theirs.kind is not output.kind:
        return f"its output is {theirs.kind.name}"
    if theirs.class_names != output.class_names:
        return f"it has the classes {', '.join(theirs.class_names)[:200]}"
    missing = [i.name for i in champion.inputs if i.name not in frame.columns]
    return f"no column {missing[0]}" if missing else ""


def _metrics(
    rows: pl.DataFrame,
    expected: tuple[Any, Any],
    model: bytes,
    inputs: Sequence[Input],
    answer: tuple[OutputSpec, Calibration | Temperature | None],
) -> dict[str, float]:
    """The metrics of a model; `expected` has the labels of the rows, and their weights or None."""
    labels, weights = expected
    from flywheel_job.recipes.dataset import encode

    output, calibration = answer
    found = onnx_outputs(open_session(model), encode(rows, inputs))
    scores = output_values(output, found, rows.height).astype("float64")
    if output.kind is OutputKind.MULTICLASS:
        return multiclass_metrics(labels, calibration.apply(scores) if calibration else scores, weights)
    values = calibration.apply(scores[:, 0]) if calibration else scores[:, 0]
    if output.kind is OutputKind.REGRESSION:
        return regression_metrics(labels, values, weights)
    return evaluate(labels, values, weights).as_metrics()
