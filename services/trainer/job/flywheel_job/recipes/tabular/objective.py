"""The loss of each row: of its label, and of the answer of a teacher."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
    mse_loss,
)

from flywheel_common.arrays import Floats
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.recipes.tasks import Task

SMALLEST = 1e-6
"""A teacher's probability is at least this far from 0 and 1, so that its logit is finite."""


def label_losses(task: Task, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss `[rows]` of labels `[rows]`."""
    if task == "multiclass":
        return cross_entropy(outputs, labels, reduction="none")
    if task == "binary":
        return binary_cross_entropy_with_logits(outputs[:, 0], labels, reduction="none")
    return mse_loss(outputs[:, 0], labels, reduction="none")


def teacher_losses(
    task: Task, outputs: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The loss `[rows]` of a teacher's logits, or standardised values, `[rows, outputs]`.

    Both distributions are softened by the temperature T, and their cross-entropy is multiplied by T², so that
    the size of its gradients does not depend on T (Hinton, Vinyals and Dean 2015, equation 4).
    """
    if task == "regression":
        return mse_loss(outputs, targets, reduction="none")[:, 0]
    softened = outputs / temperature
    if task == "binary":
        probabilities = torch.sigmoid(targets / temperature)
        losses = binary_cross_entropy_with_logits(softened, probabilities, reduction="none")[:, 0]
    else:
        probabilities = torch.softmax(targets / temperature, dim=1)
        losses = -(probabilities * log_softmax(softened, dim=1)).sum(dim=1)
    return losses * temperature**2


def label_targets(network: TabularNet, labels: np.ndarray[tuple[int], np.dtype[np.generic]]) -> torch.Tensor:
    """Labels as the network learns them: classes, 0.0 and 1.0, or standardised values."""
    if network.task == "multiclass":
        return torch.from_numpy(labels.astype(np.int64))
    values = torch.from_numpy(labels.astype(np.float64))
    if network.task == "regression":
        values = (values - network.label_mean.double().cpu()) / network.label_scale.double().cpu()
    return values.float()


def teacher_targets(network: TabularNet, found: Floats) -> torch.Tensor:
    """The answers `[rows, outputs]` of a teacher as logits or standardised values; 0 for an absent answer."""
    if network.task == "regression":
        values = (found - float(network.label_mean)) / float(network.label_scale)
    else:
        clipped = np.clip(found, SMALLEST, 1 - SMALLEST)
        values = np.log(clipped) - (np.log1p(-clipped) if network.task == "binary" else 0.0)
    return torch.from_numpy(np.nan_to_num(values).astype(np.float32))
