"""Which queued jobs start now: a pure function of the queue, the running jobs, the cluster and the quotas.

Jobs of a higher priority start first. Among equal priorities, the project that uses the smallest share of the
cluster is next (its dominant share: the largest one of its shares of CPUs, GPUs and memory), then the oldest
job. A job that only lacks free resources blocks the jobs after it, so that small jobs cannot delay a large
one for ever. A job that lacks quota, or that the cluster cannot satisfy, blocks no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from flywheel_trainer.jobs.resources import Node, Quota, Request, missing

K = TypeVar("K")


@dataclass(frozen=True)
class Queued(Generic[K]):
    """A job that waits for its next attempt."""

    key: K
    project: str
    priority: int
    created_at: datetime
    request: Request
    not_before: datetime | None = None
    """When the pause after a lost attempt ends."""


@dataclass(frozen=True)
class Plan(Generic[K]):
    """Jobs to start, in this order, and why the others wait."""

    start: tuple[K, ...] = ()
    waiting: Mapping[K, str] = field(default_factory=dict)
    infeasible: Mapping[K, str] = field(default_factory=dict)
    """What the cluster lacks for a job even when it is empty."""


def plan(
    queued: Sequence[Queued[K]],
    running: Sequence[tuple[str, Request]],
    nodes: Sequence[Node],
    quota_of: Callable[[str], Quota],
    max_running: int,
    now: datetime,
) -> Plan[K]:
    """The plan for this moment. `running` is (project, request) of each active attempt; no nodes: unknown."""
    used: dict[str, list[float]] = {}
    total = [
        sum(node.cpus for node in nodes),
        sum(node.gpus for node in nodes),
        sum(node.memory_bytes for node in nodes),
    ]

    def add(project: str, request: Request) -> None:
        sums = used.setdefault(project, [0.0, 0.0, 0.0])
        sums[0] += request.cpus
        sums[1] += request.gpus
        sums[2] += request.memory_bytes

    def share(project: str) -> float:
        sums = used.get(project, [0.0, 0.0, 0.0])
        return max((s / t if t else s for s, t in zip(sums, total, strict=True)), default=0.0)

    for project, request in running:
        add(project, request)
    slots = max_running - len(running)
    start: list[K] = []
    waiting: dict[K, str] = {}
    infeasible: dict[K, str] = {}
    left = list(queued)
    blocked_by = ""
    while left:
        job = min(left, key=lambda j: (-j.priority, share(j.project), j.created_at))
        left.remove(job)
        lack = missing(job.request, nodes, quota_of(job.project))
        if lack:
            infeasible[job.key] = lack
        elif job.not_before is not None and now < job.not_before:
            waiting[job.key] = "waits before the next attempt"
        elif over_quota := _over_quota(job, used.get(job.project, [0.0, 0.0]), quota_of(job.project)):
            waiting[job.key] = over_quota
        elif blocked_by:
            waiting[job.key] = blocked_by
        elif len(start) >= slots:
            waiting[job.key] = blocked_by = f"waits for a free slot: {max_running} jobs run"
        elif nodes and (short := _short(job.request, used, total)):
            waiting[job.key] = short
            blocked_by = "waits for a job before it that needs more resources than are free"
        else:
            add(job.project, job.request)
            start.append(job.key)
    return Plan(tuple(start), waiting, infeasible)


def _over_quota(job: Queued[K], used: Sequence[float], quota: Quota) -> str:
    for unit, wanted, has, limit in (
        ("CPUs", job.request.cpus, used[0], quota.cpus),
        ("GPUs", job.request.gpus, used[1], quota.gpus),
    ):
        if limit is not None and wanted and has + wanted > limit:
            return f"waits for quota: project {job.project} uses {has:g} of {limit:g} {unit}"
    return ""


def _short(request: Request, used: Mapping[str, Sequence[float]], total: Sequence[float]) -> str:
    gib = 1024.0**3
    for index, (unit, wanted, size) in enumerate(
        (
            ("CPUs", request.cpus, 1.0),
            ("GPUs", request.gpus, 1.0),
            ("GiB of memory", request.memory_bytes, gib),
        )
    ):
        free = total[index] - sum(sums[index] for sums in used.values())
        if wanted > free + 1e-9:
            return f"waits for {wanted / size:.4g} {unit}: {max(0.0, free) / size:.4g} are free"
    return ""
