"""Predictions, outcomes, references and policies for tests of the monitor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel_common.columns import from_numpy, from_texts, to_table
from flywheel_monitor.ingest import decode
from flywheel_monitor.ingest.batches import OutcomeColumns, PredictionColumns
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.span import Span
from flywheel_protos.events.v1 import prediction_pb2

MODEL = "projects/p/models/late"
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
PANE_US = MINUTE_US
START_US = 1_364_774_400_000_000  # 2013-04-01
CHAMPION, CHALLENGER, SHADOW = 1, 2, 3
REFERENCE = Reference(
    (ColumnReference("v__x", True, (50, 50), edges=(0.0,), stddev=1.0, minimum=-3.0, maximum=3.0),),
    {"auc": 0.8, "label_mean": 0.5},
)
STRICT_POLICY = MonitorPolicy(
    window_us=HOUR_US,
    lateness_us=0,
    min_predictions=7,
    min_labels=8,
    psi_warning=0.05,
    psi_alert=0.3,
    fdr=0.05,
    k_of=1,
    m_windows=4,
    score_shift=1.5,
    auc_drop=0.02,
    log_loss_ratio=1.1,
    data_quality_rate=0.4,
    label_shift=0.01,
)
"""A policy without any default value."""


def version_name(number: int = 1, model: str = MODEL) -> str:
    return f"{model}/versions/{number}"


def hour(number: int) -> Span:
    return Span(number * HOUR_US, (number + 1) * HOUR_US)


def predictions(
    ids: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    *,
    times: Sequence[int] | np.ndarray | None = None,
    values: Sequence[float | None] | np.ndarray | None = None,
    role: int = CHAMPION,
    release: int = 1,
    version: int = 1,
    rollout: str = "",
    generation: int = 0,
    model: str = MODEL,
    sources: Sequence[int] | None = None,
    segments: Sequence[str] = (),
    reasons: Sequence[str] = (),
    latencies: Sequence[float] | np.ndarray | None = None,
    not_yet_valid: Sequence[str] = (),
    kind: int = 1,
    class_names: Sequence[str] = (),
    costs: Sequence[float] = (),
    subjects: Sequence[str] = (),
) -> PredictionColumns:
    """A batch as the gateway logs it; scores are [n] or [n, width]. Defaults: BINARY, score 0.5 in
    the first minute, feature `v__x` 0, source MODEL, 3 ms."""
    n = len(ids)
    values = [0.0] * n if values is None else list(values)
    scores = np.full(n, 0.5) if scores is None else np.asarray(scores, np.float64)
    valid = np.array([v is not None for v in values], np.bool_)
    feature = from_numpy("v__x", np.array([v or 0.0 for v in values], np.float64), valid)
    message = prediction_pb2.PredictionBatch(
        model=model,
        model_version=version_name(version, model),
        release=f"{model}/releases/{release}",
        rollout=rollout,
        generation=generation,
        role=role,  # type: ignore[arg-type]
        prediction_ids=ids,
        event_times=np.asarray([START_US] * n if times is None else times, "<i8").tobytes(),
        features=to_table([feature]),
        scores=scores.astype("<f8").tobytes(),
        decisions=np.asarray(scores.reshape(n, -1)[:, 0] >= 0.5, "u1").tobytes(),
        sources=np.asarray([1] * n if sources is None else sources, "u1").tobytes(),
        latencies_ms=np.asarray([3.0] * n if latencies is None else latencies, "<f4").tobytes(),
        segments=segments,
        error_reasons=reasons,
        not_yet_valid=not_yet_valid,
        output_kind=kind,  # type: ignore[arg-type]
        score_width=scores.size // n if n else 1,
        class_names=class_names,
        costs=np.asarray(costs, "<f4").tobytes(),
        subjects=subjects,
        entities=to_table([from_texts("flight", list(ids))]),
    )
    return decode.prediction_columns(message, message.SerializeToString())


def outcomes(
    ids: Sequence[str],
    values: Sequence[float] | np.ndarray,
    *,
    times: Sequence[int] | np.ndarray | None = None,
    outcome_ids: Sequence[str] | None = None,
    name: str = "label",
    model: str = MODEL,
    class_names: Sequence[str] = (),
) -> OutcomeColumns:
    """A batch of outcomes. Defaults: labels that became known an hour after START_US, one per prediction."""
    times = [START_US + HOUR_US] * len(ids) if times is None else times
    message = prediction_pb2.OutcomeBatch(
        model=model,
        prediction_ids=ids,
        event_times=np.asarray(times, "<i8").tobytes(),
        name=name,
        values=np.asarray(values, "<f8").tobytes(),
        outcome_ids=[f"o-{i}" for i in ids] if outcome_ids is None else outcome_ids,
        class_names=class_names,
    )
    return decode.outcome_columns(message)


def scored_labels(n: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """n ids, scores, and labels drawn with the scores as probabilities."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.95, n)
    return [f"{seed}-{i}" for i in range(n)], scores, (rng.uniform(size=n) < scores).astype(float)


def log_losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log-loss of each row, independent of the monitor's code."""
    return -(labels * np.log(scores) + (1 - labels) * np.log(1 - scores))
