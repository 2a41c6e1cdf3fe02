"""Reads and encodes a training set, and loads the weights of a warm start."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flywheel_job import objects
from flywheel_job.errors import TooFewTrainingRows
from flywheel_job.launch import LABEL, TIME
from flywheel_job.recipes.dataset import (
    Split,
    check_weights,
    choose_inputs,
    encode,
    in_time_order,
    split_by_time,
    weights_of,
)
from flywheel_job.recipes.labels import outputs_of, task_labels
from flywheel_job.recipes.tabular.network import renamed_layers
from flywheel_job.recipes.tabular.spec import TabularSpec
from flywheel_job.scoring import Tensor
from flywheel_job.signature import Input


@dataclass(frozen=True)
class PreparedData:
    """The training set as arrays in time order, and its split."""

    inputs: tuple[Input, ...]
    rows: Tensor
    labels: np.ndarray[Any, np.dtype[Any]]
    split: Split
    weights: np.ndarray[Any, np.dtype[np.float64]] | None = None
    """None: all rows have the same weight."""
    outputs: int = 1
    """Number of classes; 1: a probability or a value."""


@dataclass(frozen=True)
class InitialWeights:
    """The weights and vocabularies that training starts from."""

    vocabularies: dict[str, tuple[str, ...]]
    state: dict[str, torch.Tensor] | None
    """None: random weights."""
    note: str
    """Name of the model version, or why there are none."""


def load_initial_weights(spec: TabularSpec, store: Any) -> InitialWeights:
    """The weights of the warm start; random weights if there is none or its inputs or layers differ."""
    if spec.warm_start is None:
        return InitialWeights({}, None, "none")
    raw = objects.read(store, spec.warm_start.uri)
    if hashlib.sha256(raw).hexdigest() != spec.warm_start.sha256:
        raise ValueError(f"weights of {spec.warm_start.version} do not match their digest")
    saved: dict[str, Any] = torch.load(io.BytesIO(raw), weights_only=True)
    wanted = [(c.name, c.data_type) for c in spec.columns]
    if [(i["name"], i["data_type"]) for i in saved["inputs"]] != wanted:
        return InitialWeights({}, None, f"not used: {spec.warm_start.version} has other inputs")
    if list(saved["hidden_sizes"]) != list(spec.hyperparameters.hidden_sizes):
        return InitialWeights({}, None, f"not used: {spec.warm_start.version} has other layers")
    if saved.get("task", "binary") != spec.hyperparameters.task:
        return InitialWeights({}, None, f"not used: {spec.warm_start.version} has another task")
    vocabularies = {i["name"]: tuple(i["vocabulary"]) for i in saved["inputs"] if i["vocabulary"]}
    return InitialWeights(vocabularies, renamed_layers(saved["state"]), spec.warm_start.version)


def check_training_set(spec: TabularSpec, store: Any) -> None:
    """Check event times, labels, weights and the number of rows before the workers start.

    Raises UnusableTrainingSet, TooFewEventTimes, and TooFewTrainingRows if a worker would have no row.
    """
    hyper = spec.hyperparameters
    names = [hyper.weight_column] if hyper.weight_column else []
    frame = in_time_order(objects.read_table(store, spec.uri, [*names, LABEL, TIME]))
    split = split_by_time(frame[TIME], hyper.holdout_fraction)
    labels = task_labels(frame, hyper.task)
    check_weights(weights_of(frame, hyper.weight_column), labels, split)
    outputs_of(hyper.task, labels, split.train_end)
    if spec.workers > split.train_end:
        raise TooFewTrainingRows(
            f"{split.train_end} of {split.rows} labelled rows are left for training, but each of "
            f"{spec.workers} workers needs at least one."
        )


def prepare(spec: TabularSpec, store: Any, start: InitialWeights) -> PreparedData:
    """Read, split and encode the training set."""
    hyper = spec.hyperparameters
    names = [c.name for c in spec.columns] + ([hyper.weight_column] if hyper.weight_column else [])
    frame = in_time_order(objects.read_table(store, spec.uri, [*names, LABEL, TIME]))
    split = split_by_time(frame[TIME], hyper.holdout_fraction)
    inputs = choose_inputs(spec.columns, frame.head(split.train_end), start.vocabularies)
    labels, weights = task_labels(frame, hyper.task), weights_of(frame, hyper.weight_column)
    check_weights(weights, labels, split)
    outputs = outputs_of(hyper.task, labels, split.train_end)
    return PreparedData(inputs, encode(frame, inputs), labels, split, weights, outputs)
