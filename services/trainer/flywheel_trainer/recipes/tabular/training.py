"""The training loop of every DDP worker; rank 0 also stores the result."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pyarrow import fs
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from flywheel_trainer.evaluation.metrics import auc, log_loss
from flywheel_trainer.job_logs.storing import output_copied_to, stored_log
from flywheel_trainer.recipes import objects
from flywheel_trainer.recipes.outcome import Artifact, Outcome
from flywheel_trainer.recipes.provenance import code_version, environment
from flywheel_trainer.recipes.reporting import MetricReporter
from flywheel_trainer.recipes.tabular.network import TabularNet
from flywheel_trainer.recipes.tabular.preparation import load_initial_weights, prepare
from flywheel_trainer.recipes.tabular.report import export_and_evaluate
from flywheel_trainer.recipes.tabular.scoring import Tensor
from flywheel_trainer.recipes.tabular.spec import TabularSpec


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


def run_worker(config: dict[str, str]) -> None:
    """Entry point of every Ray Train worker; rank 0 writes the outcome to S3."""
    import ray.train
    import ray.train.torch

    spec = TabularSpec.from_json(config["spec"].encode())
    context = ray.train.get_context()
    threads = max(1, (os.cpu_count() or 1) // context.get_world_size())
    torch.set_num_threads(threads)
    store = objects.open_store()
    with _stored_output(spec, store, context.get_world_rank()):
        outcome = train(
            spec,
            store=store,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            device=ray.train.torch.get_device(),
            distribute=ray.train.torch.prepare_model,
        )
        if outcome is not None:
            objects.write(store, spec.outcome_uri, outcome.to_json())
        if dist.is_initialized():
            dist.barrier()


@contextmanager
def _stored_output(spec: TabularSpec, store: fs.FileSystem, rank: int) -> Iterator[None]:
    """Store what this rank writes as its own log stream."""
    if not spec.log_uri:
        yield
        return
    folder = f"{objects.path_of(spec.log_uri)}/rank-{rank}"
    with stored_log(store, folder, spec.attempt, last_flush_seconds=5) as log, output_copied_to(log):
        yield


def train(
    spec: TabularSpec,
    *,
    store: fs.FileSystem,
    rank: int,
    world: int,
    device: torch.device,
    distribute: Callable[[nn.Module], nn.Module],
) -> Outcome | None:
    """Train; on rank 0 also export, evaluate and store the files.

    Equal seed, data and world size give an equal network.
    """
    start = load_initial_weights(spec, store)
    data = prepare(spec, store, start)
    hyper = spec.hyperparameters
    torch.manual_seed(hyper.seed)
    network = TabularNet(
        [len(one.vocabulary) if one.categorical else None for one in data.inputs],
        hyper.hidden_sizes,
        hyper.dropout,
    )
    end = data.split.train_end
    network.fit_scaling(data.rows[:end])
    if start.state is not None:
        network.load_state_dict(start.state)
    model = distribute(network.to(device))
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
    best_loss, best_epoch, best_state = math.inf, 0, network.state_dict()
    with MetricReporter(spec.trainer_address if rank == 0 else "", spec.run) as reporter:
        for epoch in range(1, hyper.epochs + 1):
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
            if dist.is_initialized():
                dist.all_reduce(total)
            if rank != 0:
                continue
            train_loss = float(total) / (len(own_rows) * world)
            if not math.isfinite(train_loss):
                raise FloatingPointError(
                    f"the loss became {train_loss} in epoch {epoch}: lower the learning rate"
                )
            held = slice(end, data.split.calibration_end)
            scores = _scores(network, data.rows[held], device)
            held_weights = None if data.weights is None else data.weights[held]
            val_loss = log_loss(data.labels[held], scores, held_weights)
            val_auc = auc(data.labels[held], scores, held_weights)
            reporter.log(epoch, train_loss=train_loss, val_loss=val_loss, val_auc=val_auc)
            sys.stdout.write(
                f"epoch {epoch}/{hyper.epochs} train_loss {train_loss:.5f} "
                f"val_loss {val_loss:.5f} val_auc {val_auc:.4f}\n"
            )
            sys.stdout.flush()
            if val_loss < best_loss:
                best_loss, best_epoch = val_loss, epoch
                best_state = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        if rank != 0:
            return None
        network = network.cpu()
        network.load_state_dict(best_state)
        report, files = export_and_evaluate(spec, data, network.eval(), start, best_epoch)
        reporter.log(hyper.epochs, **report["metrics"])
        artifacts = []
        for name, content in files.items():
            uri, digest = objects.put_by_digest(store, spec.output_uri, content)
            artifacts.append(Artifact(name, len(content), digest, uri))
        points = tuple(reporter.points)
    return Outcome(
        succeeded=True,
        artifacts=tuple(artifacts),
        points=points,
        params={k: str(v) for k, v in asdict(hyper).items() if v != ""}
        | {"workers": str(world), "warm_start": start.note},
        code_version=code_version(),
        environment=environment() | {"device": str(device)},
    )


def _scores(network: TabularNet, rows: Tensor, device: torch.device) -> np.ndarray[Any, np.dtype[np.float64]]:
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(rows).to(device))[:, 0]
        return torch.sigmoid(logits.double()).cpu().numpy()
