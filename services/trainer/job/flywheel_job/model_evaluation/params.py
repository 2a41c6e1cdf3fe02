"""The parameters of an EVALUATE job, as the trainer passes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

FUNCTION = "flywheel_job.model_evaluation.job:evaluate"
REPORT = "evaluation.json"
"""Name of the artifact with the result."""
MODEL, CHAMPION, ROWS = "model", "champion", "rows"
"""Names of the job's models and of its data set."""


@dataclass(frozen=True)
class EvaluationParams:
    """What is computed; the models and the rows are in the launch specification."""

    label: str = "label"
    weight_column: str = ""
    slices: tuple[str, ...] = ()
    start_us: int | None = None
    end_us: int | None = None
    """Event times in microseconds since the epoch; None: no bound."""
    samples: int = 200
    """Bootstrap samples; 0: no intervals."""
    confidence: float = 0.95
    beta: float = 1.0
    """Of the F-beta by which the threshold is chosen."""
    false_positive_cost: float | None = None
    false_negative_cost: float | None = None
    """With both, the threshold is chosen by cost."""
    threshold: float | None = None
    """Threshold of the decisions; None: the model's own, or the chosen one."""
    note: str = ""
    """Why there is no champion to compare with; empty if there is one."""

    record_evidence: bool = False
    """Whether the trainer records the result with the registry."""

    def params(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self:
        """The inverse of `params` followed by a round trip through JSON."""
        return cls(**{**params, "slices": tuple(params["slices"])})
