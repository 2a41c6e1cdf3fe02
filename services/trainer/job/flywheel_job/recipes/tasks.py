"""What a recipe on tabular data predicts."""

from __future__ import annotations

from typing import Literal

Task = Literal["binary", "multiclass", "regression"]
