"""The loop that every DDP worker runs, and what rank 0 makes of the result."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from flywheel_trainer.calibration import fit_platt
from flywheel_trainer.evaluation import auc, best_threshold, evaluate, f1, log_loss
from flywheel_trainer.recipes import objects
from flywheel_trainer.recipes.outcome import MODEL, REPORT, WEIGHTS, Outcome, Produced
from flywheel_trainer.recipes.provenance import code_version, environment
from flywheel_trainer.recipes.reporting import MetricReporter
from flywheel_trainer.recipes.tabular.dataset import (
    Input,
    Split,
    choose_inputs,
    encode,
    in_time_order,
    labels_of,
    split_by_time,
)
from flywheel_trainer.recipes.tabular.export import OPSET, check_parity, to_onnx
from flywheel_trainer.recipes.tabular.network import TabularNet
from flywheel_trainer.recipes.tabular.scoring import Tensor, onnx_scores, open_session
from flywheel_trainer.recipes.tabular.spec import LABEL, TIME, TabularSpec

GOLDEN_ROWS = 16


@dataclass(frozen=True)
class Prepared:
    """Arrays in time order and where they are split."""

    inputs: tuple[Input, ...]
    rows: Tensor
    labels: np.ndarray[Any, np.dtype[np.float32]]
    split: Split


@dataclass(frozen=True)
class Start:
    """Weights that training begins with."""

    vocabularies: dict[str, tuple[str, ...]]
    state: dict[str, torch.Tensor] | None
    note: str


def shard(rows: int, world: int, rank: int, seed: int, epoch: int) -> torch.Tensor:
    """This rank's row numbers of one epoch: one permutation for all, dealt out evenly; the remainder sits out."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[: rows - rows % world][rank::world]


def run_worker(config: dict[str, str]) -> None:
    """Entry of every Ray Train worker; rank 0 leaves the outcome on S3."""
    import ray.train
    import ray.train.torch

    spec = TabularSpec.from_json(config["spec"].encode())
    context = ray.train.get_context()
    threads = max(1, (os.cpu_count() or 1) // context.get_world_size())
    torch.set_num_threads(threads)
    outcome = train(
        spec,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=ray.train.torch.get_device(),
        distribute=ray.train.torch.prepare_model,
    )
    if outcome is not None:
        objects.write(objects.open_store(), spec.outcome_uri, outcome.to_json())
    if dist.is_initialized():
        dist.barrier()


def train(
    spec: TabularSpec,
    *,
    rank: int,
    world: int,
    device: torch.device,
    distribute: Callable[[nn.Module], nn.Module],
) -> Outcome | None:
    """Train, and on rank 0 export, evaluate and keep the files. Same seed, data and world size: same weights."""
    store = objects.open_store()
    start = load_start(spec, store)
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
    loss_of = nn.BCEWithLogitsLoss()
    rows = torch.from_numpy(data.rows[:end]).to(device)
    labels = torch.from_numpy(data.labels[:end, None]).to(device)
    batch = max(1, min(hyper.batch_size, end // world))
    plan = torch.optim.lr_scheduler.OneCycleLR(
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
            mine = shard(end, world, rank, hyper.seed, epoch).to(device)
            for chunk in mine.split(batch):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(model(rows[chunk]), labels[chunk])
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                plan.step()
                total += loss.detach() * len(chunk)
            if dist.is_initialized():
                dist.all_reduce(total)
            if rank != 0:
                continue
            train_loss = float(total) / (len(mine) * world)
            if not math.isfinite(train_loss):
                raise FloatingPointError(
                    f"the loss became {train_loss} in epoch {epoch}: lower the learning rate"
                )
            held = slice(end, data.split.calibration_end)
            scores = _scores(network, data.rows[held], device)
            val_loss, val_auc = log_loss(data.labels[held], scores), auc(data.labels[held], scores)
            reporter.log(epoch, train_loss=train_loss, val_loss=val_loss, val_auc=val_auc)
            sys.stdout.write(
                f"epoch {epoch}/{hyper.epochs} train_loss {train_loss:.5f} val_loss {val_loss:.5f} val_auc {val_auc:.4f}\n"
            )
            sys.stdout.flush()
            if val_loss < best_loss:
                best_loss, best_epoch = val_loss, epoch
                best_state = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        if rank != 0:
            return None
        network = network.cpu()
        network.load_state_dict(best_state)
        report, files = conclude(spec, data, network.eval(), start, best_epoch)
        reporter.log(hyper.epochs, **report["metrics"])
        produced = []
        for name, content in files.items():
            uri, digest = objects.put_by_digest(store, spec.output_uri, content)
            produced.append(Produced(name, len(content), digest, uri))
        points = tuple(reporter.points)
    return Outcome(
        succeeded=True,
        artifacts=tuple(produced),
        points=points,
        params={k: str(v) for k, v in asdict(hyper).items()}
        | {"workers": str(world), "warm_start": start.note},
        code_version=code_version(),
        environment=environment() | {"device": str(device)},
    )


def load_start(spec: TabularSpec, store: Any) -> Start:
    """Weights of the version to start from, or none, with the reason, when its inputs or layers differ."""
    if spec.warm_start is None:
        return Start({}, None, "none")
    raw = objects.read(store, spec.warm_start.uri)
    if hashlib.sha256(raw).hexdigest() != spec.warm_start.sha256:
        raise ValueError(f"weights of {spec.warm_start.version} do not match their digest")
    kept: dict[str, Any] = torch.load(io.BytesIO(raw), weights_only=True)
    wanted = [(c.name, c.data_type) for c in spec.columns]
    if [(i["name"], i["data_type"]) for i in kept["inputs"]] != wanted:
        return Start({}, None, f"not used: {spec.warm_start.version} has other inputs")
    if list(kept["hidden_sizes"]) != list(spec.hyperparameters.hidden_sizes):
        return Start({}, None, f"not used: {spec.warm_start.version} has other layers")
    vocabularies = {i["name"]: tuple(i["vocabulary"]) for i in kept["inputs"] if i["vocabulary"]}
    return Start(vocabularies, kept["state"], spec.warm_start.version)


def prepare(spec: TabularSpec, store: Any, start: Start) -> Prepared:
    """Read and encode the training set."""
    names = [c.name for c in spec.columns]
    frame = in_time_order(objects.read_table(store, spec.uri, [*names, LABEL, TIME]))
    split = split_by_time(frame.height, spec.hyperparameters.holdout_fraction)
    inputs = choose_inputs(spec.columns, frame.head(split.train_end), start.vocabularies)
    return Prepared(inputs, encode(frame, inputs), labels_of(frame), split)


def conclude(
    spec: TabularSpec, data: Prepared, network: TabularNet, start: Start, best_epoch: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Export, calibrate, choose the threshold, evaluate: the report and the files by name."""
    split, hyper = data.split, spec.hyperparameters
    model = to_onnx(network, data.rows[:3])
    golden = golden_rows(data.rows[split.train_end :], data.inputs)
    parity = check_parity(network, model, np.concatenate([golden, data.rows[split.train_end :][:2000]]))
    session = open_session(model, threads=torch.get_num_threads())
    scores = onnx_scores(session, data.rows[split.train_end :])
    labels = data.labels[split.train_end :]
    cut = split.calibration_end - split.train_end
    platt = fit_platt(labels[:cut], scores[:cut])
    calibrated = platt.apply(scores)
    threshold = best_threshold(labels[:cut], calibrated[:cut])
    metrics = evaluate(labels[cut:], calibrated[cut:]).as_metrics() | {
        "log_loss_raw": log_loss(labels[cut:], scores[cut:]),
        "f1": f1(labels[cut:], calibrated[cut:], threshold),
        "best_epoch": float(best_epoch),
        "train_rows": float(split.train_end),
    }
    inputs = [asdict(one) for one in data.inputs]
    buffer = io.BytesIO()
    torch.save(
        {
            "inputs": [one | {"vocabulary": list(one["vocabulary"])} for one in inputs],
            "hidden_sizes": list(hyper.hidden_sizes),
            "state": network.state_dict(),
        },
        buffer,
    )
    report: dict[str, Any] = {
        "training_set": spec.training_set,
        "framework": f"torch {torch.__version__.split('+')[0]}, onnx opset {OPSET}",
        "inputs": inputs,
        "metrics": metrics,
        "calibration": asdict(platt),
        "threshold": threshold,
        "parity": parity,
        "split": asdict(split),
        "warm_start": start.note,
        "warm_started_from": start.note if start.state is not None else "",
        "golden": {
            "row_count": len(golden),
            "inputs": base64.b64encode(golden.astype("<f4").tobytes()).decode(),
            "scores": base64.b64encode(onnx_scores(session, golden).astype("<f4").tobytes()).decode(),
        },
    }
    files = {MODEL: model, WEIGHTS: buffer.getvalue(), REPORT: json.dumps(report, sort_keys=True).encode()}
    return report, files


def golden_rows(rows: Tensor, inputs: tuple[Input, ...]) -> Tensor:
    """Rows spread over the holdout, and one in which nothing is known."""
    picked = rows[np.unique(np.linspace(0, len(rows) - 1, GOLDEN_ROWS - 1).astype(int))]
    nothing = np.array([[-1.0 if one.categorical else np.nan for one in inputs]], dtype=np.float32)
    return np.concatenate([picked, nothing])


def _scores(network: TabularNet, rows: Tensor, device: torch.device) -> np.ndarray[Any, np.dtype[np.float64]]:
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(rows).to(device))[:, 0]
        return torch.sigmoid(logits.double()).cpu().numpy()
