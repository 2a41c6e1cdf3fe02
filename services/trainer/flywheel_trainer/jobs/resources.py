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


@dataclass(frozen=True)
class Request:
    """Equal workers, which start together or not at all."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True)
class Quota:
    """The most that the jobs of a project may use at one time; None: no limit."""

    cpus: float | None = None
    gpus: float | None = None


def places(request: Request, nodes: Sequence[Node]) -> int:
    """The number of workers, at most all, for which the empty machines have room.

    A worker does not span two machines.
    """
    cpus, gpus, workers = request.cpus_per_worker, request.gpus_per_worker, request.workers
    room = [min(_times(cpus, node.cpus, workers), _times(gpus, node.gpus, workers)) for node in nodes]
    return min(workers, sum(room))


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
    return (
        f"The job requests {request.workers} x {request.cpus_per_worker:g} CPUs and "
        f"{request.gpus_per_worker:g} GPUs, and the machines have room for {places(request, nodes)}."
    )


def _times(each: float, total: float, at_most: int) -> int:
    """How often `each` fits into `total`, at most `at_most` times."""
    return at_most if each <= 0 else min(at_most, math.floor(total / each + 1e-9))
