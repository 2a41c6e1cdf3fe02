"""The function of EVALUATE jobs: scores the rows, computes the report, and stores it as an artifact."""

from __future__ import annotations

import json
import os
from typing import Any

from flywheel_job.context import Context
from flywheel_job.labelled_rows.model import ScoredModel, read_model
from flywheel_job.labelled_rows.stream import TimeRange, labelled_batches
from flywheel_job.model_evaluation.collection import collect
from flywheel_job.model_evaluation.params import CHAMPION, MODEL, REPORT, ROWS, EvaluationParams
from flywheel_job.model_evaluation.report import evaluate_rows, evidence_values, metric_values
from flywheel_job.model_file import ModelFile


def evaluate(ctx: Context) -> None:
    """Evaluate the model of the job, and the champion on the same rows."""
    params = EvaluationParams.of(ctx.params)
    model = _load(ctx, MODEL)
    champion = _load(ctx, CHAMPION) if CHAMPION in ctx.spec.models else None
    scored = [one for one in (model, champion) if one is not None]
    extra = [*params.slices, *([params.weight_column] if params.weight_column else [])]
    columns = [one.name for each in scored for one in each.model.inputs] + extra
    data = ctx.data_set(ROWS)
    times = TimeRange(params.start_us, params.end_us)
    collected = collect(
        labelled_batches(ctx.store, data.uri, columns, params.label, times),
        model,
        champion,
        params,
        lambda rows: ctx.log({"scored_rows": rows}, rows),
    )
    report: dict[str, Any] = {
        "job": ctx.spec.job,
        "record_evidence": params.record_evidence,
        "model": model.model.name,
        "kind": model.model.kind,
        "champion": champion.model.name if champion else "",
        "note": params.note,
        "training_set": data.name,
        "uri": data.uri,
        "content_hash": data.content_hash,
        "time_range": str(times),
        "label": params.label,
        "weight_column": params.weight_column,
        "seed": ctx.seed,
        "samples": params.samples,
        "confidence": params.confidence,
    } | evaluate_rows(collected, params, ctx.seed, lambda number: ctx.log({"sample": number}, number))
    report["evidence"] = evidence_values(report)
    ctx.log(metric_values(report), 1)
    ctx.artifact(REPORT, json.dumps(report, sort_keys=True, allow_nan=False).encode())


def _load(ctx: Context, name: str) -> ScoredModel:
    file = ModelFile.from_json(ctx.spec.models[name])
    return ScoredModel(file, read_model(ctx.store, file), threads=os.cpu_count() or 1)
