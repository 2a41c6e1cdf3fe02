"""Resources that jobs request and machines have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: float = math.inf
    """Infinity: unknown."""
    accelerators: frozenset[str] = frozenset()
    """Models of its GPUs, as Ray names them."""


@dataclass(frozen=True)
class Request:
    """Equal workers, which start together or not at all."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    """A fraction below 1 shares a GPU."""
    memory_bytes_per_worker: int = 0
    accelerator_type: str = ""
    """Model of GPU; empty: any."""

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker

    @property
    def memory_bytes(self) -> int:
        return self.workers * self.memory_bytes_per_worker


@dataclass(frozen=True)
class Quota:
    """The most that the jobs of a project may use at one time; None: no limit."""

    cpus: float | None = None
    gpus: float | None = None


def places(request: Request, nodes: Sequence[Node]) -> int:
    """The number of workers, at most all, for which the empty machines have room.

    A worker does not span two machines.
    """
    workers = request.workers

    def room(node: Node) -> int:
        return min(
            _times(request.cpus_per_worker, node.cpus, workers),
            _times(request.gpus_per_worker, node.gpus, workers),
            _times(request.memory_bytes_per_worker, node.memory_bytes, workers),
        )

    return min(workers, sum(room(node) for node in nodes if _has_type(request, node)))


def _has_type(request: Request, node: Node) -> bool:
    return not request.accelerator_type or request.accelerator_type in node.accelerators


def missing(request: Request, nodes: Sequence[Node], quota: Quota) -> str:
    """What the cluster or the quota will always lack for this request, as a sentence; empty if nothing."""
    for unit, wanted, limit in (("CPUs", request.cpus, quota.cpus), ("GPUs", request.gpus, quota.gpus)):
        if limit is not None and wanted > limit:
            return f"The job requests {wanted:g} {unit}, and the quota of the project is {limit:g}."
    if not nodes or places(request, nodes) >= request.workers:
        return ""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    for unit, wanted, total in (("GPUs", request.gpus, gpus), ("CPUs", request.cpus, cpus)):
        if wanted > total:
            return f"The job requests {wanted:g} {unit}, and the cluster has {total:g}."
    if not any(_has_type(request, node) for node in nodes):
        known = ", ".join(sorted({one for node in nodes for one in node.accelerators})) or "none"
        return f"The job requests GPUs of the type {request.accelerator_type}, and the cluster has {known}."
    each, largest = request.memory_bytes_per_worker, max(node.memory_bytes for node in nodes)
    if each > largest:
        has = f"the largest machine has {_gib(largest)}"
        return f"The job requests {_gib(each)} GiB of memory per worker, and {has}."
    of_type = f" of the type {request.accelerator_type}" if request.accelerator_type else ""
    memory = f", with {_gib(each)} GiB of memory each" if each else ""
    return (
        f"The job requests {request.workers} x {request.cpus_per_worker:g} CPUs and "
        f"{request.gpus_per_worker:g} GPUs{of_type}{memory}, and the machines have room for "
        f"{places(request, nodes)}."
    )


def _times(each: float, total: float, at_most: int) -> int:
    """How often `each` fits into `total`, at most `at_most` times."""
    if each <= 0 or math.isinf(total):
        return at_most
    return min(at_most, math.floor(total / each + 1e-9))


def _gib(size: float) -> str:
    return f"{size / 1024**3:.4g}"
