"""The specification of an EVALUATE job, and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.model_spec import (
    COLUMN,
    MODEL,
    VERSION,
    ModelSource,
    check_model_job,
    check_rules,
)

FIELD = "evaluate"
MAX_SLICES = 10
MAX_SAMPLES = 10_000
_PLACE = "must be s3://bucket/prefix, and training_set or parquet_uri must be set"


@dataclass(frozen=True)
class EvaluateSpec:
    """What an EVALUATE job measures, on which rows, against which champion."""

    KIND: ClassVar[str] = "EVALUATE"

    experiment: str
    source: ModelSource
    training_set: str = ""
    parquet_uri: str = ""
    """Rows without a training set."""
    kind: str = ""
    """Expected kind of output; empty: any that can be compared with labels."""
    label_column: str = "label"
    weight_column: str = ""
    slice_columns: tuple[str, ...] = ()
    start: datetime | None = None
    end: datetime | None = None
    champion: str = ""
    """A version, or a model: the version that its production serves, if there is one that can be compared."""
    without_champion: bool = False
    beta: float = 1.0
    costs: tuple[float, float] | None = None
    """Cost of a false positive and of a false negative; None: the threshold is chosen by F-beta."""
    threshold: float | None = None
    bootstrap_samples: int = 200
    confidence: float = 0.95
    seed: int = 0
    record_evidence: bool = False
    cpus: float = 0.0
    """0: the trainer's setting."""
    limits: Limits = field(default_factory=Limits)

    @property
    def champion_of(self) -> str:
        """The model whose production is compared with; empty: that of a named version, or none."""
        if self.without_champion:
            return ""
        named = self.champion or self.source.model
        return named if MODEL.fullmatch(named) else ""


def check_evaluate_spec(spec: EvaluateSpec) -> None:
    """Raises InvalidSpec naming the field."""
    times = (spec.start, spec.end)
    check_model_job(FIELD, spec.experiment, spec.source, times, spec.limits, spec.cpus, spec.seed)
    place = spec.parquet_uri
    columns = (spec.label_column, *spec.slice_columns, *filter(None, [spec.weight_column]))
    evidence_rows = bool(spec.source.model_version and spec.training_set)
    low, high = spec.costs or (1.0, 1.0)
    is_place = place.startswith("s3://") and place.count("/") >= 3 and place[5:6] not in ("", "/")
    check_rules(
        FIELD,
        [
            (not spec.training_set and not is_place, "parquet_uri", _PLACE),
            (not all(map(COLUMN.fullmatch, columns)), "slice_columns", "and other columns must have names"),
            (len(spec.slice_columns) > MAX_SLICES, "slice_columns", f"must be at most {MAX_SLICES}"),
            (
                len(set(spec.slice_columns)) < len(spec.slice_columns),
                "slice_columns",
                "must be different",
            ),
            (
                bool(spec.champion) and not (VERSION.fullmatch(spec.champion) or spec.champion_of),
                "champion",
                "must name a model version or a model",
            ),
            (
                bool(spec.champion) and spec.without_champion,
                "champion",
                "must be empty with without_champion",
            ),
            (
                bool(spec.champion) and spec.champion == spec.source.model_version,
                "champion",
                "must be another version than model_version",
            ),
            (not 0 < spec.beta <= 100, "threshold.beta", "must be above 0 and at most 100"),
            (
                not (0 <= low < 1e12 and 0 <= high < 1e12 and low + high > 0),
                "threshold.costs",
                "must be at least 0 and below 1e12, and one of them above 0",
            ),
            (
                spec.threshold is not None and not 0 <= spec.threshold <= 1,
                "threshold.used",
                "must be between 0 and 1",
            ),
            (
                not 0 <= spec.bootstrap_samples <= MAX_SAMPLES,
                "bootstrap_samples",
                f"must be at most {MAX_SAMPLES}",
            ),
            (not 0.5 <= spec.confidence < 1, "confidence", "must be at least 0.5 and below 1"),
            (
                spec.record_evidence and not evidence_rows,
                "record_evidence",
                "needs model_version and training_set: gates decide on rows that can be named",
            ),
        ],
    )
