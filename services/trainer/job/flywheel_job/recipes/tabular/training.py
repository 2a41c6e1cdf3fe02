"""The functions of the tabular recipe: `check` before the workers start, `train` on each, then `export`."""

from __future__ import annotations

import copy
import math
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from flywheel_job.context import Context
from flywheel_job.evaluation.metrics import auc, log_loss
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.recipes.tabular.preparation import (
    InitialWeights,
    PreparedData,
    check_training_set,
    load_initial_weights,
    prepare,
)
from flywheel_job.recipes.tabular.report import export_and_evaluate
from flywheel_job.recipes.tabular.spec import TabularSpec
from flywheel_job.scoring import Tensor

SAVE_SECONDS = 30.0
"""Time between two checkpoints."""
SCORED_ROWS = 65_536
"""Rows of the holdout that a rank scores at once."""


def check(ctx: Context) -> None:
    """Check the training set before the workers start."""
    check_training_set(TabularSpec.of(ctx.spec), ctx.store)


def train(ctx: Context) -> None:
    """Train on every rank; equal seed, data and number of ranks give an equal network.

    The state with the lowest loss of the calibration rows is the object `best` of the last checkpoint.
    """
    spec = TabularSpec.of(ctx.spec)
    hyper, rank, world, device = spec.hyperparameters, ctx.rank, ctx.world_size, ctx.device
    start = load_initial_weights(spec, ctx.store)
    data = prepare(spec, ctx.store, start)
    ctx.note("warm_start", start.note)
    torch.manual_seed(hyper.seed)
    network, end = build(spec, data, start).to(device), data.split.train_end
    best = copy.deepcopy(network)
    model = nn.parallel.DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.AdamW(model.parameters(), lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
    rows = torch.from_numpy(data.rows[:end]).to(device)
    labels = torch.from_numpy(data.labels[:end, None]).to(device)
    weights = None if data.weights is None else relative_weights(data.weights[:end]).to(device)
    batch = max(1, min(hyper.batch_size, end // world))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=3 * hyper.learning_rate,
        total_steps=hyper.epochs * math.ceil((end // world) / batch),
    )
    restored = ctx.restore(network, optimizer, schedule=schedule, best=best)
    best_loss, best_epoch = math.inf, 0
    if restored is not None:
        best_loss, best_epoch = restored.values["best_loss"], restored.values["best_epoch"]
    clock = SharedClock(SAVE_SECONDS, device)
    for epoch in range(restored.step + 1 if restored else 1, hyper.epochs + 1):
        model.train()
        torch.manual_seed(hyper.seed * 7919 + epoch * 101 + rank)
        total = torch.zeros((), device=device)
        own_rows = shard(end, world, rank, hyper.seed, epoch).to(device)
        for chunk in own_rows.split(batch):
            optimizer.zero_grad(set_to_none=True)
            loss = binary_cross_entropy_with_logits(
                model(rows[chunk]), labels[chunk], None if weights is None else weights[chunk]
            )
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(chunk)
        if world > 1:
            dist.all_reduce(total)
        train_loss = float(total) / (len(own_rows) * world)
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the loss became {train_loss} in epoch {epoch}: lower the learning rate"
            )
        val_loss, val_auc = calibration_metrics(ctx, network, data)
        ctx.log({"train_loss": train_loss, "val_loss": val_loss, "val_auc": val_auc}, epoch)
        if rank == 0:
            sys.stdout.write(
                f"epoch {epoch}/{hyper.epochs} train_loss {train_loss:.5f} "
                f"val_loss {val_loss:.5f} val_auc {val_auc:.4f}\n"
            )
            sys.stdout.flush()
        if val_loss < best_loss:
            best_loss, best_epoch = val_loss, epoch
            best.load_state_dict(network.state_dict())
        if epoch == hyper.epochs or clock.due():
            ctx.save(
                epoch,
                network,
                optimizer,
                schedule=schedule,
                best=best,
                best_loss=best_loss,
                best_epoch=best_epoch,
            )


def export(ctx: Context) -> None:
    """Export, evaluate and store the best network of the last checkpoint."""
    spec = TabularSpec.of(ctx.spec)
    start = load_initial_weights(spec, ctx.store)
    data = prepare(spec, ctx.store, start)
    best = build(spec, data, start)
    restored = ctx.restore(copy.deepcopy(best), best=best)
    if restored is None:
        raise RuntimeError("the job has no checkpoint, although its training ended")
    best_epoch = restored.values["best_epoch"]
    export_and_evaluate(ctx, spec, data, best.eval(), start, best_epoch)


def build(spec: TabularSpec, data: PreparedData, start: InitialWeights) -> TabularNet:
    """The network before training."""
    network = TabularNet(
        [len(one.vocabulary) if one.categorical else None for one in data.inputs],
        spec.hyperparameters.hidden_sizes,
        spec.hyperparameters.dropout,
    )
    network.fit_scaling(data.rows[: data.split.train_end])
    if start.state is not None:
        network.load_state_dict(start.state)
    return network


class SharedClock:
    """Tells all ranks at once that some time has passed, by the clock of rank 0."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._seconds, self._device, self._last = seconds, device, time.monotonic()

    def due(self) -> bool:
        """Whether the time since the last True has passed. Collective."""
        passed = torch.tensor(float(time.monotonic() - self._last >= self._seconds), device=self._device)
        if dist.is_initialized():
            dist.broadcast(passed, 0)
        if passed:
            self._last = time.monotonic()
        return bool(passed)


def calibration_metrics(ctx: Context, network: TabularNet, data: PreparedData) -> tuple[float, float]:
    """Log-loss and AUC of the calibration rows, which the ranks score in equal parts."""
    held = slice(data.split.train_end, data.split.calibration_end)
    rows = data.rows[held]
    parts: list[Any] = [_scores(network, rows[ctx.rank :: ctx.world_size], ctx.device)]
    if ctx.world_size > 1:
        own, parts = parts[0], [None] * ctx.world_size
        dist.all_gather_object(parts, own)
    scores = np.empty(len(rows))
    for number, part in enumerate(parts):
        scores[number :: ctx.world_size] = part
    weights = None if data.weights is None else data.weights[held]
    labels = data.labels[held]
    return log_loss(labels, scores, weights), auc(labels, scores, weights)


def shard(rows: int, world: int, rank: int, seed: int, epoch: int) -> torch.Tensor:
    """This rank's row numbers in one epoch: an equal share of one common permutation.

    The remainder of rows / world is left out of this epoch.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[: rows - rows % world][rank::world]


def relative_weights(weights: np.ndarray[Any, np.dtype[np.float64]]) -> torch.Tensor:
    """Sample weights `[rows, 1]` for the loss, scaled to a mean of 1.

    The mean is that of all training rows, not of a batch, so that the expected gradient is that of the
    weighted mean loss, and a learning rate fits weights of any scale.
    """
    return torch.from_numpy((weights / weights.mean()).astype(np.float32)[:, None])


def _scores(network: TabularNet, rows: Tensor, device: torch.device) -> np.ndarray[Any, np.dtype[np.float64]]:
    network.eval()
    parts = []
    with torch.no_grad():
        for part in torch.from_numpy(rows).split(SCORED_ROWS):
            logits = network(part.to(device))[:, 0]
            parts.append(torch.sigmoid(logits.double()).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty(0)
