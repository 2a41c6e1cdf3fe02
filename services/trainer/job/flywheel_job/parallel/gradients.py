"""Gradients of a model whose parameters are divided among ranks: their norm, and their mean over replicas."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], largest: float, parts: dist.ProcessGroup | None
) -> torch.Tensor:
    """Scale the gradients so that the norm over the whole model is at most `largest`; returns the norm.

    `parts` is the group of ranks with different parameters (the stages of a pipeline).
    """
    gradients = [one.grad for one in parameters if one.grad is not None]
    total = squared_norm(gradients)
    if parts is not None:
        dist.all_reduce(total, group=parts)
    norm = total.sqrt()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        _local(gradient).mul_(scale)
    return norm


def average_gradients(parameters: Iterable[torch.nn.Parameter], replicas: dist.ProcessGroup) -> None:
    """Replace the gradients by their mean over the replicas, in one message."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients])
    dist.all_reduce(flat, group=replicas)
    flat /= dist.get_world_size(replicas)
    for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def squared_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of squares; the shards of a divided gradient are summed over its ranks, copies are counted once."""
    whole: list[torch.Tensor] = []
    shards: dict[dist.ProcessGroup, list[torch.Tensor]] = {}
    for gradient in gradients:
        if isinstance(gradient, DTensor) and any(isinstance(one, Shard) for one in gradient.placements):
            shards.setdefault(gradient.device_mesh.get_group(), []).append(_local(gradient))
        else:
            whole.append(_local(gradient))
    total = _sum_of_squares(whole)
    for group, parts in shards.items():
        own = _sum_of_squares(parts)
        dist.all_reduce(own, group=group)
        total = total + own
    return total


def _sum_of_squares(tensors: list[torch.Tensor]) -> torch.Tensor:
    if not tensors:
        return torch.zeros(())
    return torch.stack([one.float().square().sum() for one in tensors]).sum()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
