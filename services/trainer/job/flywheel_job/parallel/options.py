"""Options of the training step that do not depend on the strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Precision, accumulation, clipping and compilation."""

    precision: Literal["float32", "bf16"] = "float32"
    """bf16: matrix products in bfloat16, parameters and optimizer state in float32."""
    accumulate: int = 1
    """Parts into which a rank's batch is divided; gradients are summed over them, so memory holds one part.

    A pipeline uses them as its micro-batches.
    """
    clip_norm: float = 0.0
    """Largest norm of the gradient of the whole model; 0: not clipped."""
    fused: bool | None = None
    """One kernel for the whole optimizer step; None: on GPUs."""
    compile: str = ""
    """Backend of torch.compile for each layer, such as `inductor`; empty: not compiled."""
