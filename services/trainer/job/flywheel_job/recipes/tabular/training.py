"""The functions of the tabular recipe: `check` before the workers start, `train` on each, then `export`."""

from __future__ import annotations

import copy
import math
import sys
import time
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from flywheel_common.arrays import Floats
from flywheel_job.context import Context
from flywheel_job.evaluation.metrics import auc, log_loss
from flywheel_job.evaluation.tasks import multiclass_metrics, regression_metrics
from flywheel_job.recipes.tabular.network import TabularNet, answers
from flywheel_job.recipes.tabular.objective import (
    label_losses,
    label_targets,
    teacher_losses,
    teacher_targets,
)
from flywheel_job.recipes.tabular.preparation import (
    InitialWeights,
    PreparedData,
    check_training_set,
    load_initial_weights,
    prepare,
)
from flywheel_job.recipes.tabular.report import export_and_evaluate
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec
from flywheel_job.recipes.tabular.teacher import teacher_answers
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

    The state with the lowest loss of the calibration rows is the object `best` of the last checkpoint. In a
    job with a schedule an epoch is a step, and the learning rate of a segment is constant.
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
    labels = label_targets(network, data.labels[:end]).to(device)
    teacher = Teacher.of(ctx, spec, network, data)
    weights = None if data.weights is None else relative_weights(data.weights[:end]).to(device)
    batch = max(1, min(hyper.batch_size, end // world))
    steps = hyper.epochs * math.ceil((end // world) / batch)
    last_epoch, rates = ctx.until_step or hyper.epochs, LearningRates(ctx, optimizer, hyper, steps)
    restored = ctx.restore(network, optimizer, **rates.state, best=best)
    rates.apply()
    best_loss, best_epoch = math.inf, 0
    if restored is not None:
        best_loss, best_epoch = restored.values["best_loss"], restored.values["best_epoch"]
    clock = SharedClock(SAVE_SECONDS, device)
    for epoch in range(restored.step + 1 if restored else 1, last_epoch + 1):
        model.train()
        torch.manual_seed(hyper.seed * 7919 + epoch * 101 + rank)
        total = torch.zeros((), device=device)
        own_rows = shard(end, world, rank, hyper.seed, epoch).to(device)
        for chunk in own_rows.split(batch):
            optimizer.zero_grad(set_to_none=True)
            outputs = model(rows[chunk])
            losses = label_losses(hyper.task, outputs, labels[chunk])
            if teacher is not None:
                losses = teacher.added(losses, outputs, chunk)
            if weights is not None:
                losses = losses * weights[chunk]
            loss = losses.mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            rates.step()
            total += loss.detach() * len(chunk)
        if world > 1:
            dist.all_reduce(total)
        train_loss = float(total) / (len(own_rows) * world)
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the loss became {train_loss} in epoch {epoch}: lower the learning rate"
            )
        found = calibration_metrics(ctx, network, data)
        val_loss = found["val_loss"]
        ctx.log({"train_loss": train_loss} | found, epoch)
        if rank == 0:
            shown = " ".join(f"{name} {value:.5g}" for name, value in found.items())
            sys.stdout.write(f"epoch {epoch}/{hyper.epochs} train_loss {train_loss:.5f} {shown}\n")
            sys.stdout.flush()
        if val_loss < best_loss:
            best_loss, best_epoch = val_loss, epoch
            best.load_state_dict(network.state_dict())
        if epoch == last_epoch or clock.due():
            ctx.save(
                epoch,
                network,
                optimizer,
                **rates.state,
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
        spec.hyperparameters.task,
        data.outputs,
    )
    network.fit_scaling(data.rows[: data.split.train_end])
    network.fit_labels(data.labels[: data.split.train_end])
    if start.state is not None:
        network.load_state_dict(start.state)
    return network


class LearningRates:
    """The learning rate of each step: one cycle over the training, or constant in a segment of a schedule."""

    def __init__(
        self, ctx: Context, optimizer: torch.optim.Optimizer, hyper: Hyperparameters, steps: int
    ) -> None:
        self._optimizer, self._hyper = optimizer, hyper
        self._cycle = (
            None
            if ctx.until_step
            else torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=3 * hyper.learning_rate, total_steps=steps
            )
        )

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint has of it."""
        return {} if self._cycle is None else {"schedule": self._cycle}

    def apply(self) -> None:
        """Set what a segment may change: a restored optimizer has the values of the segment before."""
        if self._cycle is None:
            for group in self._optimizer.param_groups:
                group["lr"], group["weight_decay"] = self._hyper.learning_rate, self._hyper.weight_decay

    def step(self) -> None:
        if self._cycle is not None:
            self._cycle.step()


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


class Teacher:
    """The answers of the teacher for the training rows, and their share in the loss of each row."""

    def __init__(self, spec: TabularSpec, network: TabularNet, found: Floats, device: torch.device) -> None:
        """`found` are the answers `[rows, outputs]`; a row with NaN learns from its label alone."""
        hyper = spec.hyperparameters
        self._task, self._temperature = hyper.task, hyper.teacher_temperature
        self._targets = teacher_targets(network, found).to(device)
        share = hyper.teacher_weight * np.isfinite(found).all(axis=1)
        self._share = torch.from_numpy(share.astype(np.float32)).to(device)

    @classmethod
    def of(cls, ctx: Context, spec: TabularSpec, network: TabularNet, data: PreparedData) -> Self | None:
        """The teacher of the job, which scores the rows now; None if it has none. Collective."""
        if spec.teacher is None:
            return None
        found = teacher_answers(ctx, spec.teacher, data.split.train_end, data.outputs)
        ctx.note("teacher", spec.teacher.name)
        return cls(spec, network, found, ctx.device)

    def added(self, losses: torch.Tensor, outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(1 - share) × the losses of the labels + share × those of the teacher's answers, `[rows]`."""
        share = self._share[rows]
        taught = teacher_losses(self._task, outputs, self._targets[rows], self._temperature)
        return (1 - share) * losses + share * taught


def calibration_metrics(ctx: Context, network: TabularNet, data: PreparedData) -> dict[str, float]:
    """Loss and quality of the calibration rows, which the ranks score in equal parts.

    `val_loss` is the log-loss, or the mean squared error of a regression.
    """
    held = slice(data.split.train_end, data.split.calibration_end)
    rows = data.rows[held]
    parts: list[Any] = [_scores(network, rows[ctx.rank :: ctx.world_size], ctx.device)]
    if ctx.world_size > 1:
        own, parts = parts[0], [None] * ctx.world_size
        dist.all_gather_object(parts, own)
    scores = np.empty((len(rows), data.outputs))
    for number, part in enumerate(parts):
        scores[number :: ctx.world_size] = part
    weights = None if data.weights is None else data.weights[held]
    labels = data.labels[held]
    if network.task == "multiclass":
        found = multiclass_metrics(labels, scores, weights)
        return {"val_loss": found["log_loss"], "val_accuracy": found["accuracy"]}
    if network.task == "regression":
        found = regression_metrics(labels, scores[:, 0], weights)
        return {"val_loss": found["rmse"] ** 2, "val_rmse": found["rmse"]}
    return {
        "val_loss": log_loss(labels, scores[:, 0], weights),
        "val_auc": auc(labels, scores[:, 0], weights),
    }


def shard(rows: int, world: int, rank: int, seed: int, epoch: int) -> torch.Tensor:
    """This rank's row numbers in one epoch: an equal share of one common permutation.

    The remainder of rows / world is left out of this epoch.
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[: rows - rows % world][rank::world]


def relative_weights(weights: np.ndarray[Any, np.dtype[np.float64]]) -> torch.Tensor:
    """Sample weights `[rows]` for the loss, scaled to a mean of 1.

    The mean is that of all training rows, not of a batch, so that the expected gradient is that of the
    weighted mean loss, and a learning rate fits weights of any scale.
    """
    return torch.from_numpy((weights / weights.mean()).astype(np.float32))


def _scores(network: TabularNet, rows: Tensor, device: torch.device) -> Floats:
    """Probabilities or values `[rows, outputs]`."""
    network.eval()
    with torch.no_grad():
        parts = [
            answers(network, network(part.to(device)).double()).cpu().numpy()
            for part in torch.from_numpy(rows).split(SCORED_ROWS)
            if len(part)
        ]
    return np.concatenate(parts) if parts else np.empty((0, 1))
