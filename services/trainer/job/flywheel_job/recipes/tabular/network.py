"""The network: a float32 tensor in, probabilities out; pre-processing is part of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flywheel_job.recipes.tasks import Task


def embedding_size(vocabulary: int) -> int:
    """Embedding width: the square root of the vocabulary's size, between 2 and 16."""
    return int(min(16, max(2, round((vocabulary + 1) ** 0.5))))


class TabularNet(nn.Module):
    """INPUT `[rows, inputs]` → logits `[rows, outputs]`, or standardised values `[rows, 1]` of a regression.

    Numbers are standardised by mean and standard deviation of the training rows; a NaN becomes the mean and
    sets an extra indicator input. Categories are indices in the vocabulary; -1, NaN and larger indices share
    the first embedding row.
    """

    numeric: torch.Tensor
    categorical: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    label_mean: torch.Tensor
    label_scale: torch.Tensor

    def __init__(
        self,
        vocabulary_sizes: Sequence[int | None],
        hidden_sizes: Sequence[int],
        dropout: float = 0.0,
        task: Task = "binary",
        outputs: int = 1,
    ) -> None:
        """`vocabulary_sizes` has one entry per input: None for a number, else its vocabulary's length."""
        super().__init__()
        self.task: Task = task
        numeric = [i for i, size in enumerate(vocabulary_sizes) if size is None]
        sizes = [(i, size) for i, size in enumerate(vocabulary_sizes) if size is not None]
        self.numeric_count, self.sizes = len(numeric), [size for _, size in sizes]
        self.register_buffer("numeric", torch.tensor(numeric, dtype=torch.int64))
        self.register_buffer("categorical", torch.tensor([i for i, _ in sizes], dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(len(numeric)))
        self.register_buffer("scale", torch.ones(len(numeric)))
        if task == "regression":
            self.register_buffer("label_mean", torch.zeros(()))
            self.register_buffer("label_scale", torch.ones(()))
        self.embeddings = nn.ModuleList(nn.Embedding(n + 1, embedding_size(n)) for n in self.sizes)
        width = 2 * len(numeric) + sum(embedding_size(n) for n in self.sizes)
        layers: list[nn.Module] = []
        for size in hidden_sizes:
            layers += [nn.Linear(width, size), Activation(dropout)]
            width = size
        layers.append(nn.Linear(width, outputs))
        self.layers = nn.Sequential(*layers)

    def fit_scaling(self, rows: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Set mean and standard deviation of the numeric inputs from training rows; NaN is left out."""
        if not self.numeric_count:
            return
        values = rows[:, self.numeric.numpy()].astype(np.float64)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(np.where(deviation > 1e-12, deviation, 1.0)))

    def fit_labels(self, labels: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Set mean and standard deviation of the labels of a regression."""
        if self.task == "regression":
            deviation = float(labels.std())
            self.label_mean.fill_(float(labels.mean()))
            self.label_scale.fill_(deviation if deviation > 1e-12 else 1.0)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        if self.numeric_count:
            values = rows.index_select(1, self.numeric)
            missing = torch.isnan(values)
            scaled = (torch.where(missing, self.mean, values) - self.mean) / self.scale
            parts += [scaled.clamp(-10.0, 10.0), missing.to(rows.dtype)]
        if self.sizes:
            codes = rows.index_select(1, self.categorical)
            for position, (embedding, size) in enumerate(zip(self.embeddings, self.sizes, strict=True)):
                code = codes[:, position]
                known = (code >= 0) & (code < size)
                parts.append(embedding(torch.where(known, code + 1, torch.zeros_like(code)).to(torch.int64)))
        logits: torch.Tensor = self.layers(torch.cat(parts, dim=1))
        return logits

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Outputs for the loss; `Scorer` makes probabilities or values of them."""
        return self.logits(rows)


class Activation(nn.Module):
    """ReLU, then dropout: one layer, so that the names of parameters do not depend on the dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        active = functional.relu(values)
        return functional.dropout(active, self.dropout) if self.training and self.dropout else active


def renamed_layers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state with the names of this version: networks with dropout once had a layer more after each."""
    places = sorted({int(name.split(".")[1]) for name in state if name.startswith("layers.")})
    names = {f"layers.{place}.": f"layers.{2 * number}." for number, place in enumerate(places)}

    def renamed(name: str) -> str:
        layer, parameter = name[: name.rfind(".") + 1], name.rpartition(".")[2]
        return names.get(layer, layer) + parameter

    return {renamed(name): value for name, value in state.items()}


class Scorer(nn.Module):
    """The exported graph: probabilities instead of logits, values in the unit of the labels."""

    def __init__(self, network: TabularNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return answers(self.network, self.network.logits(rows))


def answers(network: TabularNet, outputs: torch.Tensor) -> torch.Tensor:
    """What outputs of the network mean: probabilities `[rows, outputs]`, or values `[rows, 1]`."""
    if network.task == "binary":
        return torch.sigmoid(outputs)
    if network.task == "multiclass":
        return torch.softmax(outputs, dim=1)
    return outputs * network.label_scale + network.label_mean
