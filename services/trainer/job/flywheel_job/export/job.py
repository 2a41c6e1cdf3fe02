"""The function of EXPORT jobs: converts a model, compares it with its source, and stores it if it is near."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl

from flywheel_common.arrays import Floats
from flywheel_job.context import Context
from flywheel_job.errors import ExportRefused, UnusableEvaluationSet
from flywheel_job.evaluation.ranking import Ranking
from flywheel_job.evaluation.thresholds import by_f_beta
from flywheel_job.export.comparison import Differences, compare, fit_platt_to, fit_temperature_to, refusals
from flywheel_job.export.graphs import converted, with_dynamic_rows
from flywheel_job.export.params import FLOAT32, MODEL, REPORT, ROWS, ExportParams
from flywheel_job.export.speed import call_seconds, cpu_name
from flywheel_job.labelled_rows.labels import labels_for
from flywheel_job.labelled_rows.model import ScoredModel, fed_rows, read_model
from flywheel_job.labelled_rows.sample import sample
from flywheel_job.labelled_rows.stream import TimeRange, labelled_batches
from flywheel_job.launch import LABEL
from flywheel_job.model_file import BINARY, MULTICLASS, ModelFile
from flywheel_job.scoring import INPUT, SCORE, Tensor
from flywheel_job.signature import Signature

MIN_ROWS = 10
GOLDEN_ROWS = 15
ALONE_ROWS = 64
"""Rows that are scored alone too, to measure how much a score depends on the other rows of its batch."""


def export(ctx: Context) -> None:
    """Convert, calibrate and compare. Raises ExportRefused, before anything is stored, by the policy."""
    params, source = ExportParams.of(ctx.params), ModelFile.from_json(ctx.spec.models[MODEL])
    content = read_model(ctx.store, source)
    calibration, evaluation = _rows(ctx, params, source)
    tensor = source.tensors[0].name
    (calibration, fitting), (evaluation, checking) = (
        _tensor(part, source) for part in (calibration, evaluation)
    )
    dynamic = with_dynamic_rows(content, tensor, source.output)
    exported = converted(dynamic, params.format, fitting, per_channel=params.per_channel)
    original, plain = ScoredModel(source, content), _renamed(source)
    model = ScoredModel(plain, exported)
    target = original.outputs({tensor: fitting})
    refit = _refit(source.kind, target, model.raw({INPUT: fitting}))
    own = source.calibration if params.format == FLOAT32 else refit
    model = ScoredModel(replace(plain, calibration=own), exported)
    threshold = _threshold(source, calibration, target)
    labels = labels_for(evaluation[LABEL], source.kind, source.classes)
    ours, theirs = model.outputs({INPUT: checking}), original.outputs({tensor: checking})
    found = compare(source.kind, labels, theirs, ours, threshold)
    problems = refusals(source.kind, found, params.policy)
    if problems:
        raise ExportRefused(f"{params.format} of {source.name}: {' '.join(problems)} No model was stored.")
    report = _report(ctx, params, source, found, threshold)
    report |= _sizes_and_speeds(dynamic, exported, checking)
    report["batch_difference"] = _batch_difference(model, checking)
    report["calibration"] = own
    ctx.export(
        exported,
        Signature(source.inputs, len(source.classes) if source.kind == MULTICLASS else 1),
        _golden_rows(checking, plain, (dynamic, exported)),
        framework=f"onnxruntime {params.format}",
        metrics=dict(found.exported),
        report=_model_report(source, own, threshold),
        batch_tolerance=max(1e-4, 2 * report["batch_difference"]),
    )
    ctx.log(_metrics(report, found), 1)
    ctx.artifact(REPORT, json.dumps(report, sort_keys=True, allow_nan=False).encode())


def _rows(ctx: Context, params: ExportParams, source: ModelFile) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The calibration rows and the evaluation rows, in the proportion that the job asks for."""
    wanted = params.calibration_rows + params.evaluation_rows
    columns = [one.name for one in source.inputs]
    drawn = sample(
        labelled_batches(
            ctx.store,
            ctx.data_set(ROWS).uri,
            columns,
            LABEL,
            TimeRange(params.start_us, params.end_us),
        ),
        wanted,
        np.random.default_rng(ctx.seed),
        lambda rows: ctx.log({"scanned_rows": rows}, rows),
    )
    cut = drawn.height * params.calibration_rows // wanted
    cut = max(cut, min(MIN_ROWS, params.calibration_rows))
    if drawn.height - cut < MIN_ROWS:
        raise UnusableEvaluationSet(
            f"There are {drawn.height} rows with a label in the time range of the job: at least "
            f"{2 * MIN_ROWS} are needed."
        )
    return drawn.head(cut), drawn.slice(cut)


def _tensor(rows: pl.DataFrame, source: ModelFile) -> tuple[pl.DataFrame, Tensor]:
    """The rows that fit the source's tensor, and the tensor. Raises UnusableEvaluationSet for too few."""
    fed = fed_rows(rows, [source])
    if fed.frame.height < MIN_ROWS:
        raise UnusableEvaluationSet(f"{fed.left_out} of {rows.height} rows do not fit the model's tensor.")
    return fed.frame, np.ascontiguousarray(fed.feeds[0][source.tensors[0].name])


def _renamed(source: ModelFile) -> ModelFile:
    """The description of the exported graph, before its calibration is known."""
    (tensor,) = source.tensors
    named = type(tensor)(INPUT, tensor.data_type, tensor.inputs)
    return replace(source, tensors=(named,), output=SCORE, calibration={})


def _refit(kind: str, target: Floats, outputs: Floats) -> dict[str, Any]:
    """The calibration with which the exported outputs are nearest to those of the calibrated source."""
    if kind == BINARY:
        return {"platt": asdict(fit_platt_to(target, outputs))}
    if kind == MULTICLASS:
        return {"temperature": asdict(fit_temperature_to(target, outputs))}
    return {}


def _threshold(source: ModelFile, rows: pl.DataFrame, outputs: Floats) -> float | None:
    """The source's threshold, or the one of the largest F1 on the calibration rows."""
    if source.kind != BINARY or source.threshold is not None:
        return source.threshold
    labels = labels_for(rows[LABEL], source.kind, source.classes)
    return by_f_beta(Ranking(outputs), labels, np.ones(len(labels))).threshold


def _report(
    ctx: Context, params: ExportParams, source: ModelFile, found: Differences, threshold: float | None
) -> dict[str, Any]:
    data = ctx.data_set(ROWS)
    finite: dict[str, Any] = {
        part: {name: value if np.isfinite(value) else None for name, value in getattr(found, part).items()}
        for part in ("source", "exported")
    }
    return {
        "model": source.name,
        "kind": source.kind,
        "format": params.format,
        "per_channel": params.per_channel,
        "training_set": data.name,
        "content_hash": data.content_hash,
        "time_range": str(TimeRange(params.start_us, params.end_us)),
        "seed": ctx.seed,
        "rows": found.rows,
        "threshold": threshold,
        "flip_share": found.flip_share,
        "largest_difference": found.largest,
        "metrics": finite["exported"],
        "source_metrics": finite["source"],
        "policy": asdict(params.policy),
    }


def _sizes_and_speeds(source: bytes, exported: bytes, rows: Tensor) -> dict[str, Any]:
    seconds = call_seconds({"source": source, "exported": exported}, rows)
    return {
        "source_bytes": len(source),
        "bytes": len(exported),
        "cpu": cpu_name(),
        "microseconds": {str(size): one * 1e6 for size, one in seconds["exported"].items()},
        "source_microseconds": {str(size): one * 1e6 for size, one in seconds["source"].items()},
    }


def _batch_difference(model: ScoredModel, rows: Tensor) -> float:
    """Largest difference between scores of rows alone and together."""
    some = rows[:ALONE_ROWS]
    together = model.raw({INPUT: some})
    alone = np.concatenate([model.raw({INPUT: some[i : i + 1]}) for i in range(len(some))])
    return float(np.abs(together - alone).max())


def _metrics(report: dict[str, Any], found: Differences) -> dict[str, float]:
    """What the run shows."""
    values = {
        "size_ratio": report["source_bytes"] / report["bytes"],
        "flip_share": found.flip_share,
        "batch_difference": report["batch_difference"],
        **{
            f"speed_ratio_{size}": report["source_microseconds"][size] / one
            for size, one in report["microseconds"].items()
        },
        **found.exported,
        **{f"source_{name}": value for name, value in found.source.items()},
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _model_report(
    source: ModelFile, calibration: Mapping[str, Any], threshold: float | None
) -> dict[str, Any]:
    """What `report.json` has beside the fields of every export."""
    extra: dict[str, Any] = {"task": source.kind.lower(), "exported_from": source.name}
    if calibration:
        extra["calibration"] = calibration.get("platt", calibration)
    if threshold is not None:
        extra["threshold"] = threshold
    return extra


def _golden_rows(rows: Tensor, plain: ModelFile, graphs: Sequence[bytes]) -> Tensor:
    """Evenly spaced rows, and one in which every input is missing if all graphs score it."""
    picked = rows[np.unique(np.linspace(0, len(rows) - 1, GOLDEN_ROWS).astype(int))]
    missing = np.array([[-1.0 if one.categorical else np.nan for one in plain.inputs]], dtype=np.float32)
    scores = [ScoredModel(plain, graph).unchecked({INPUT: missing}) for graph in graphs]
    return np.concatenate([picked, missing]) if np.isfinite(scores).all() else picked
