"""The specification of an EXPORT job, and its validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from flywheel_job.export.params import FORMATS, ExportPolicy
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.model_spec import ModelSource, check_model_job, check_rules

__all__ = ["ExportPolicy", "ExportSpec", "check_export_spec"]
FIELD = "export"
MAX_CALIBRATION_ROWS, MAX_EVALUATION_ROWS = 100_000, 1_000_000


@dataclass(frozen=True)
class ExportSpec:
    """Which model an EXPORT job converts to which format, and how far it may differ."""

    KIND: ClassVar[str] = "EXPORT"

    experiment: str
    source: ModelSource
    training_set: str = ""
    format: str = ""
    policy: ExportPolicy = field(default_factory=ExportPolicy)
    calibration_rows: int = 2_000
    evaluation_rows: int = 20_000
    per_channel: bool = False
    start: datetime | None = None
    end: datetime | None = None
    seed: int = 0
    cpus: float = 0.0
    """0: the trainer's setting."""
    limits: Limits = field(default_factory=Limits)


def check_export_spec(spec: ExportSpec) -> None:
    """Raises InvalidSpec naming the field."""
    times = (spec.start, spec.end)
    check_model_job(FIELD, spec.experiment, spec.source, times, spec.limits, spec.cpus, spec.seed)
    policy = spec.policy
    check_rules(
        FIELD,
        [
            (not spec.training_set, "training_set", "must name a training set"),
            (spec.format not in FORMATS, "format", f"must be one of {', '.join(FORMATS)}"),
            (
                not 0 <= policy.max_flip_share <= 1,
                "policy.max_flip_share",
                "must be between 0 and 1",
            ),
            *(
                (
                    not (getattr(policy, name) >= 0 and math.isfinite(getattr(policy, name))),
                    f"policy.{name}",
                    "must be at least 0 and finite",
                )
                for name in ("max_log_loss_increase", "max_auc_loss", "max_rmse_increase")
            ),
            (
                not 10 <= spec.calibration_rows <= MAX_CALIBRATION_ROWS,
                "calibration_rows",
                f"must be between 10 and {MAX_CALIBRATION_ROWS}",
            ),
            (
                not 10 <= spec.evaluation_rows <= MAX_EVALUATION_ROWS,
                "evaluation_rows",
                f"must be between 10 and {MAX_EVALUATION_ROWS}",
            ),
        ],
    )
