"""Reads and encodes a training set, and loads the weights of a warm start."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flywheel_trainer.recipes import objects
from flywheel_trainer.recipes.tabular.dataset import (
    Input,
    Split,
    choose_inputs,
    encode,
    in_time_order,
    labels_of,
    split_by_time,
)
from flywheel_trainer.recipes.tabular.scoring import Tensor
from flywheel_trainer.recipes.tabular.spec import LABEL, TIME, TabularSpec


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
