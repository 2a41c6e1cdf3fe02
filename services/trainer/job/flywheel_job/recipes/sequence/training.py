"""The function of the sequence recipe: `flywheel_job.recipes.sequence.training:train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from flywheel_job.context import Context
from flywheel_job.data.shard import Shard
from flywheel_job.errors import EmptyDataSet, UnsupportedStrategy, UnusableTrainingSet
from flywheel_job.parallel.layout import Layout, Strategy
from flywheel_job.parallel.options import Options
from flywheel_job.parallel.training import Training, start
from flywheel_job.recipes.sequence.model import Decoder, DecoderShape, next_token_loss


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


def train(ctx: Context) -> None:
    """Train for `steps` steps, from the last checkpoint if there is one."""
    params = ctx.parse_params(SequenceParams)
    layout = Layout.of(params.strategy, ctx.rank, ctx.world_size, params.stages)
    data = batches_of(ctx, params, layout, "train")
    training = start(
        Decoder(shape_of(data, params), ctx.seed),
        next_token_loss,
        lambda parameters, fused: torch.optim.AdamW(
            parameters, lr=params.learning_rate, weight_decay=params.weight_decay, fused=fused
        ),
        layout,
        ctx.device,
        params.options(),
    )
    warmup = params.warmup_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        training.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1))
    )
    restored = ctx.restore(training.module, training.optimizer, schedule=schedule)
    step = restored.step if restored else 0
    while step < params.steps:
        for batch in data:
            tokens = batch[params.column]
            if len(tokens) < params.batch_size // layout.replicas:
                continue  # the rest of an epoch: every step has equally many rows
            loss = training.step(*inputs_and_targets(tokens, ctx, params))
            schedule.step()
            step += 1
            ctx.log({"loss": loss}, step)
            last = step == params.steps or ctx.should_stop()
            if last or (params.evaluate_steps and step % params.evaluate_steps == 0):
                evaluate(ctx, training, params, step)
            if last or (params.save_steps and step % params.save_steps == 0):
                ctx.save(step, training.module, training.optimizer, schedule=schedule)
            if last:
                return


def evaluate(ctx: Context, training: Training, params: SequenceParams, step: int) -> None:
    """Log the loss of the data set `holdout`, if the job has one, scored in batches by all ranks."""
    if "holdout" not in ctx.spec.data:
        return
    losses = []
    for batch in batches_of(ctx, params, training.layout, "holdout"):
        tokens = batch[params.column]
        if len(tokens) == params.batch_size // training.layout.replicas:
            losses.append(training.evaluate(*inputs_and_targets(tokens, ctx, params)))
    ctx.log({"val_loss": sum(losses) / len(losses)}, step)


def batches_of(ctx: Context, params: SequenceParams, layout: Layout, name: str) -> Shard:
    """This replica's batches, in which every replica has its part of the same global batch.

    Raises UnsupportedStrategy if a batch cannot be divided, EmptyDataSet if there is not one batch.
    """
    pipeline = layout.strategy in {Strategy.PIPELINE, Strategy.DDP_PIPELINE}
    micro_batches = max(params.accumulate, layout.parts) if pipeline else params.accumulate
    parts = layout.replicas * micro_batches
    if params.batch_size % parts:
        raise UnsupportedStrategy(
            f"batch_size {params.batch_size} cannot be divided into {parts} equal parts "
            f"({layout.replicas} replicas, the rest micro-batches)."
        )
    if layout.strategy is Strategy.TENSOR and params.heads % layout.parts:
        raise UnsupportedStrategy(f"{params.heads} heads cannot be divided among {layout.parts} workers.")
    data = ctx.data(
        name,
        batch_size=params.batch_size // layout.replicas,
        columns=[params.column],
        shuffle=name == "train",
        resume=name == "train",
        same_batches=True,
        replica=(layout.replica, layout.replicas),
    )
    if data.rows < params.batch_size:
        raise EmptyDataSet(f"The data set {name!r} has {data.rows} rows, fewer than one batch.")
    return data


def shape_of(data: Shard, params: SequenceParams) -> DecoderShape:
    """The sizes of the model, with the length of the first row. Raises UnusableTrainingSet."""
    length = len(data.first()[params.column][0]) - 1
    if length < 1 or params.width % params.heads:
        raise UnusableTrainingSet(
            f"Rows of {length + 1} tokens, width {params.width} and {params.heads} heads make no model."
        )
    return DecoderShape(params.vocabulary, length, params.width, params.layers, params.heads)


def inputs_and_targets(tokens: Any, ctx: Context, params: SequenceParams) -> tuple[Any, Any]:
    """All tokens but the last, and all but the first. Raises UnusableTrainingSet for unknown tokens."""
    if int(tokens.min()) < 0 or int(tokens.max()) >= params.vocabulary:
        raise UnusableTrainingSet(f"Tokens must be from 0 to {params.vocabulary - 1}.")
    moved = tokens.to(ctx.device, torch.int64, non_blocking=True)
    return moved[:, :-1], moved[:, 1:]
