"""The parameters of a sequence job, and the rules that need no look at its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flywheel_job.errors import InvalidParams, UnsupportedStrategy
from flywheel_job.parallel.layout import Layout, Strategy
from flywheel_job.parallel.options import Options
from flywheel_job.params import parse_params

MODULE = "flywheel_job.recipes.sequence.training"
CHECK, TRAIN, EXPORT = f"{MODULE}:check", f"{MODULE}:train", f"{MODULE}:export"
"""The functions of the recipe."""
MAX_VOCABULARY = 1 << 24
"""Tokens below this are exact in float32, the type of the exported model's input."""
MAX_SIZE = 1 << 20
"""Bound of the sizes of the model, so that a wrong number does not fill the memory of the workers."""


@dataclass(frozen=True)
class SequenceParams:
    """Parameters of the recipe."""

    vocabulary: int
    """Tokens are 0 to vocabulary - 1."""
    column: str = "tokens"
    """List column with the tokens of a row; all rows have equally many, at least 2."""
    strategy: str = Strategy.DDP
    stages: int = 0
    """Ranks of one pipeline; 0: all, or 2 for ddp+pipeline."""
    steps: int = 100
    batch_size: int = 32
    """Rows of a step over all ranks. The learning rate is not scaled by the number of ranks, because that
    does not change the batch."""
    learning_rate: float = 3e-3
    warmup_steps: int = 0
    weight_decay: float = 0.01
    width: int = 64
    layers: int = 4
    heads: int = 4
    save_steps: int = 0
    """Steps between two checkpoints; 0: one at the end."""
    evaluate_steps: int = 0
    """Steps between two evaluations of the data set `holdout`; 0: one at the end, if the job has it."""
    precision: Literal["float32", "bf16"] = "float32"
    accumulate: int = 1
    clip_norm: float = 0.0
    fused: bool | None = None
    compile: str = ""

    def options(self) -> Options:
        return Options(self.precision, self.accumulate, self.clip_norm, self.fused, self.compile)

    def micro_batches(self, layout: Layout) -> int:
        """Parts into which the batch of a replica is divided."""
        pipeline = layout.strategy in {Strategy.PIPELINE, Strategy.DDP_PIPELINE}
        return max(self.accumulate, layout.parts) if pipeline else self.accumulate


def checked_params(values: Mapping[str, Any], workers: int) -> SequenceParams:
    """The parameters of a job with so many workers.

    Raises InvalidParams for a value out of its range, UnsupportedStrategy if the workers cannot divide the
    model or the batch.
    """
    params = parse_params(SequenceParams, values)
    _check_ranges(params)
    layout = Layout.of(params.strategy, 0, workers, params.stages)
    layout.layers(params.layers)
    if layout.strategy is Strategy.TENSOR and params.heads % layout.parts:
        raise UnsupportedStrategy(f"{params.heads} heads cannot be divided among {layout.parts} workers.")
    micro_batches = params.micro_batches(layout)
    if params.batch_size % (layout.replicas * micro_batches):
        raise UnsupportedStrategy(
            f"batch_size {params.batch_size} cannot be divided into {layout.replicas * micro_batches} equal "
            f"parts: {layout.replicas} replicas of the model with {micro_batches} micro-batches each."
        )
    return params


def _check_ranges(params: SequenceParams) -> None:
    largest = {"vocabulary": MAX_VOCABULARY} | dict.fromkeys(
        ("steps", "batch_size", "width", "layers", "heads", "accumulate"), MAX_SIZE
    )
    smallest = {"vocabulary": 2}
    problems = [
        f"{name} is {getattr(params, name)}, it must be between {smallest.get(name, 1)} and {bound}"
        for name, bound in largest.items()
        if not smallest.get(name, 1) <= getattr(params, name) <= bound
    ]
    problems += [
        f"{name} is {getattr(params, name)}, it must be at least 0"
        for name in ("stages", "warmup_steps", "weight_decay", "save_steps", "evaluate_steps", "clip_norm")
        if getattr(params, name) < 0
    ]
    if not 0 < params.learning_rate < 1e3:
        problems.append(f"learning_rate is {params.learning_rate}, it must be above 0 and below 1000")
    if not problems and params.width % params.heads:
        problems.append(f"width {params.width} cannot be divided among {params.heads} heads")
    if problems:
        raise InvalidParams("Wrong parameters: " + "; ".join(problems) + ".")
