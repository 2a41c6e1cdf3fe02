"""What a recipe on tabular data predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flywheel_common.signature import OutputKind

Task = Literal["binary", "multiclass", "regression"]
TASK_OF: Mapping[OutputKind, Task] = {
    OutputKind.BINARY: "binary",
    OutputKind.MULTICLASS: "multiclass",
    OutputKind.REGRESSION: "regression",
}
"""Kind of the output → the task that trains such a model."""
