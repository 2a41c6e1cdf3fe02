"""Recipes of the platform: what a job trains without code of the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flywheel.train_job import TrainJob

_TRANSFORMER = "flywheel_job.recipes.sequence.training"


@dataclass(frozen=True)
class TransformerRecipe:
    """A decoder-only transformer that learns the next token of sequences.

    >>> job = fw.TransformerRecipe(vocabulary=32000, column="v__tokens", strategy="fsdp").job(
    ...     experiment="sequences", data={"train": training_set}, workers=8, gpus_per_worker=1)
    """

    vocabulary: int
    """Tokens are 0 to vocabulary - 1."""
    column: str = "tokens"
    """Column with the tokens of a row: a list or a vector, equally long in all rows, at least 2 tokens."""
    strategy: Literal["ddp", "fsdp", "tensor", "pipeline", "ddp+pipeline"] = "ddp"
    """How the workers divide model and batch (docs/guides/training.md)."""
    stages: int = 0
    """Workers of one pipeline; 0: all, or 2 for ddp+pipeline."""
    steps: int = 100
    batch_size: int = 32
    """Rows of a step over all workers."""
    learning_rate: float = 3e-3
    warmup_steps: int = 0
    weight_decay: float = 0.01
    width: int = 64
    layers: int = 4
    heads: int = 4
    save_steps: int = 0
    """Steps between two checkpoints; 0: one at the end."""
    evaluate_steps: int = 0
    """Steps between two measurements of `val_loss` on the data set `holdout`; 0: one at the end."""
    precision: Literal["float32", "bf16"] = "float32"
    accumulate: int = 1
    """Parts into which a worker's batch is divided, to need less memory."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    fused: bool | None = None
    """One kernel for the optimizer; None: on GPUs."""
    compile: str = ""
    """Backend of torch.compile, such as `inductor`; empty: not compiled."""

    def job(
        self, *, experiment: str, data: Mapping[str, str], export: bool = True, **fields: Any
    ) -> TrainJob:
        """The job; `fields` are further ones of TrainJob, such as `workers` and `seed`.

        `data` has the training set `train`, and `holdout` if its loss is to be measured. `export` stores
        model.onnx, for which the driver needs the memory of the whole model.
        """
        return TrainJob(
            function=f"{_TRANSFORMER}:train",
            source=None,
            experiment=experiment,
            data=data,
            params=asdict(self),
            check=f"{_TRANSFORMER}:check",
            export=f"{_TRANSFORMER}:export" if export else "",
            **fields,
        )
