"""The parameters of an EXPORT job, as the trainer passes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

FUNCTION = "flywheel_job.export.job:export"
REPORT = "export.json"
"""Name of the artifact with sizes, speeds and differences."""
MODEL, ROWS = "model", "rows"
"""Names of the job's model and of its data set."""
FLOAT32, FLOAT16, INT8_DYNAMIC, INT8_STATIC = "FLOAT32", "FLOAT16", "INT8_DYNAMIC", "INT8_STATIC"
FORMATS = (FLOAT32, FLOAT16, INT8_DYNAMIC, INT8_STATIC)


@dataclass(frozen=True)
class ExportPolicy:
    """The largest differences from the source that are allowed (ExportPolicy in the API)."""

    max_flip_share: float = 0.01
    max_log_loss_increase: float = 0.005
    max_auc_loss: float = 0.002
    max_rmse_increase: float = 0.01


@dataclass(frozen=True)
class ExportParams:
    """Format, rows and policy; the model and the training set are in the launch specification."""

    format: str
    policy: ExportPolicy = field(default_factory=ExportPolicy)
    calibration_rows: int = 2_000
    evaluation_rows: int = 20_000
    per_channel: bool = False
    start_us: int | None = None
    end_us: int | None = None

    def params(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """The inverse of `params` followed by a round trip through JSON."""
        return cls(**{**params, "policy": ExportPolicy(**params["policy"])})
