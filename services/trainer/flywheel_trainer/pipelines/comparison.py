"""Compares challenger and champion on the same held-out rows, each with its own inputs and calibration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flywheel_common.scoring.calibration import Platt
from flywheel_job.evaluation.calibration import Calibration
from flywheel_job.evaluation.metrics import evaluate
from flywheel_job.launch import LABEL, TIME
from flywheel_job.scoring import onnx_scores, open_session
from flywheel_job.signature import Input
from flywheel_trainer.jobs.ports import TrainingSet

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class ChampionModel:
    """The model in production: its graph, inputs and calibration."""

    version: str
    model: bytes
    inputs: tuple[Input, ...]
    calibration: Calibration
    release: str = ""


@dataclass(frozen=True)
class Comparison:
    """Metrics of both models on the evaluation rows.

    Those of the champion are empty if there is none, or if the training set lacks one of its inputs.
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
    from flywheel_job.recipes.dataset import Split, in_time_order, labels_of, weights_of

    frame = in_time_order(read(uri, [*wanted, LABEL, TIME]))
    split = Split(**report["split"])
    rows = frame.slice(split.calibration_end, split.rows - split.calibration_end)
    labels = labels_of(frame).astype("float64")[split.calibration_end :]
    weights = weights_of(rows, weight_column)
    ours = _metrics(rows, (labels, weights), challenger, inputs, Platt(**report["calibration"]))
    if champion is None:
        return Comparison(ours, {}, "no champion to compare with")
    missing = [i.name for i in champion.inputs if i.name not in frame.columns]
    if missing:
        return Comparison(ours, {}, f"champion {champion.version} not compared: no column {missing[0]}")
    theirs = _metrics(rows, (labels, weights), champion.model, champion.inputs, champion.calibration)
    note = (
        f"champion {champion.version} on the same {rows.height} rows: "
        f"AUC {theirs['auc']:.4f}, log-loss {theirs['log_loss']:.4f}"
    )
    return Comparison(ours, theirs, note)


def _metrics(
    rows: pl.DataFrame,
    expected: tuple[Any, Any],
    model: bytes,
    inputs: Sequence[Input],
    calibration: Calibration,
) -> dict[str, float]:
    """The metrics of a model; `expected` has the labels of the rows, and their weights or None."""
    labels, weights = expected
    from flywheel_job.recipes.dataset import encode

    scores = onnx_scores(open_session(model), encode(rows, inputs))
    return evaluate(labels, calibration.apply(scores), weights).as_metrics()
