"""The functions of the sequence recipe: `check` before the workers start, `train` on each, then `export`."""

from __future__ import annotations

from typing import Any

import torch

from flywheel_job.context import Context
from flywheel_job.data.shard import Shard
from flywheel_job.errors import EmptyDataSet, UnusableTrainingSet
from flywheel_job.parallel.layout import Layout
from flywheel_job.parallel.training import Training, start
from flywheel_job.recipes.sequence.export import export_and_store
from flywheel_job.recipes.sequence.model import Decoder, DecoderShape, next_token_loss
from flywheel_job.recipes.sequence.params import SequenceParams, checked_params

HOLDOUT = "holdout"
"""Data set whose loss is measured, if the job has it."""


def check(ctx: Context) -> None:
    """Check the parameters and the first row of each data set before the workers start."""
    params = checked_params(ctx.params, ctx.spec.workers)
    layout = Layout.of(params.strategy, 0, ctx.spec.workers, params.stages)
    train_set = batches_of(ctx, params, layout, "train")
    shape = shape_of(train_set, params)
    held = [batches_of(ctx, params, layout, HOLDOUT)] if HOLDOUT in ctx.spec.data else []
    for data in (train_set, *held):
        inputs_and_targets(data.first()[params.column], ctx, params, shape)


def train(ctx: Context) -> None:
    """Train for `steps` steps, from the last checkpoint if there is one."""
    params = checked_params(ctx.params, ctx.world_size)
    layout = Layout.of(params.strategy, ctx.rank, ctx.world_size, params.stages)
    data = batches_of(ctx, params, layout, "train")
    shape = shape_of(data, params)
    training = start(
        Decoder(shape, ctx.seed),
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
    val_loss = restored.values.get("val_loss") if restored else None
    while step < params.steps:
        for batch in data:
            tokens = batch[params.column]
            if len(tokens) < params.batch_size // layout.replicas:
                continue  # the rest of an epoch: every step has equally many rows
            loss = training.step(*inputs_and_targets(tokens, ctx, params, shape))
            schedule.step()
            step += 1
            ctx.log({"loss": loss}, step)
            last = step == params.steps or ctx.should_stop()
            if last or (params.evaluate_steps and step % params.evaluate_steps == 0):
                val_loss = evaluate(ctx, training, params, shape, step)
            if last or (params.save_steps and step % params.save_steps == 0):
                ctx.save(step, training.module, training.optimizer, schedule=schedule, val_loss=val_loss)
            if last:
                return


def export(ctx: Context) -> None:
    """Export and store the model of the last checkpoint."""
    params = ctx.parse_params(SequenceParams)
    layout = Layout.of("ddp", 0, 1)
    shape = shape_of(batches_of(ctx, params, layout, "train"), params)
    module = Decoder(shape, ctx.seed).build(range(shape.layers), lambda layer: layer)
    restored = ctx.restore(module)
    if restored is None:
        raise RuntimeError("the job has no checkpoint, although its training ended")
    held = HOLDOUT if HOLDOUT in ctx.spec.data else "train"
    rows = ctx.data(held, batch_size=16, columns=[params.column], shuffle=False, resume=False)
    golden = next(iter(rows))[params.column]
    export_and_store(ctx, params.column, module, shape, golden, restored.values.get("val_loss"))


def evaluate(
    ctx: Context, training: Training, params: SequenceParams, shape: DecoderShape, step: int
) -> float | None:
    """Log the loss of the data set `holdout`, if the job has one, scored in batches by all ranks."""
    if HOLDOUT not in ctx.spec.data:
        return None
    losses = []
    for batch in batches_of(ctx, params, training.layout, HOLDOUT):
        tokens = batch[params.column]
        if len(tokens) == params.batch_size // training.layout.replicas:
            losses.append(training.evaluate(*inputs_and_targets(tokens, ctx, params, shape)))
    loss = sum(losses) / len(losses)
    ctx.log({"val_loss": loss}, step)
    return loss


def batches_of(ctx: Context, params: SequenceParams, layout: Layout, name: str) -> Shard:
    """This replica's batches, in which every replica has its part of the same global batch.

    Raises EmptyDataSet if there is not one batch.
    """
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
        raise EmptyDataSet(
            f"The data set {name!r} has {data.rows} rows, fewer than one batch of {params.batch_size}."
        )
    return data


def shape_of(data: Shard, params: SequenceParams) -> DecoderShape:
    """The sizes of the model, with the length of the first row. Raises UnusableTrainingSet."""
    first = data.first()[params.column]
    if not isinstance(first, torch.Tensor) or first.ndim != 2 or first.shape[1] < 2:
        raise UnusableTrainingSet(f"Column {params.column!r} must have lists of at least 2 tokens.")
    return DecoderShape(params.vocabulary, first.shape[1] - 1, params.width, params.layers, params.heads)


def inputs_and_targets(
    tokens: Any, ctx: Context, params: SequenceParams, shape: DecoderShape
) -> tuple[Any, Any]:
    """All tokens but the last, and all but the first. Raises UnusableTrainingSet for other values."""
    if tokens.shape[1:] != (shape.length + 1,):
        raise UnusableTrainingSet(
            f"Column {params.column!r} has lists of {shape.length + 1} and of {tokens.shape[-1]} tokens."
        )
    whole = not tokens.is_floating_point() or bool((tokens == tokens.round()).all())
    if not whole or int(tokens.min()) < 0 or int(tokens.max()) >= params.vocabulary:
        raise UnusableTrainingSet(f"Tokens must be whole numbers from 0 to {params.vocabulary - 1}.")
    moved = tokens.to(ctx.device, torch.int64, non_blocking=True)
    return moved[:, :-1], moved[:, 1:]
