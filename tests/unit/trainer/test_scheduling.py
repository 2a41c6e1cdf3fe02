"""Which queued jobs start, as a pure function."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flywheel_trainer.jobs.resources import Node, Quota, Request, missing, places
from flywheel_trainer.jobs.scheduling import Plan, Queued, plan
from tests.support.builders.trainer import AT

GIB = 1024**3
CLUSTER = [Node(4, 1), Node(4, 1)]
MEMORY = [Node(4, 1, 4 * GIB, frozenset({"A100"})), Node(4, 1, 9 * GIB, frozenset({"H200"}))]


def job(key: str, *, priority: int = 0, age: float = 0, cpus: float = 1, **fields: object) -> Queued[str]:
    """A job of the project that is the first letter of its key."""
    values = {"request": Request(1, cpus), **fields}
    return Queued(key, key[0], priority, AT - timedelta(seconds=age), **values)  # type: ignore[arg-type]


def planned(
    *queued: Queued[str],
    running: list[tuple[str, Request]] | None = None,
    nodes: list[Node] | None = None,
    quotas: dict[str, Quota] | None = None,
    max_running: int = 99,
) -> Plan[str]:
    nodes = CLUSTER if nodes is None else nodes
    return plan(
        queued, running or [], nodes, lambda project: (quotas or {}).get(project, Quota()), max_running, AT
    )


def test_a_higher_priority_starts_first_then_the_older_job() -> None:
    jobs = [job("a1", age=1), job("a2", priority=5), job("a3", age=9), job("a4", priority=-1, age=99)]
    assert ("a2", "a3", "a1", "a4") == planned(*jobs).start


def test_projects_of_one_priority_take_turns() -> None:
    jobs = [job("a1", age=9), job("a2", age=8), job("a3", age=7), job("b1", age=2), job("b2", age=1)]
    assert ("a1", "b1", "a2", "b2", "a3") == planned(*jobs).start


def test_the_share_of_a_project_includes_its_running_jobs_and_its_scarcest_resource() -> None:
    running = [("a", Request(1, 1, 1)), ("b", Request(1, 2))]  # half of the GPUs, and a quarter of the CPUs
    assert ("b1", "a1") == planned(job("a1", age=9), job("b1"), running=running).start


def test_slots_are_limited_and_the_others_say_why_they_wait() -> None:
    decided = planned(job("a1", age=2), job("a2"), running=[("b", Request(1, 1))], max_running=2)
    assert ("a1",) == decided.start
    assert {"a2": "waits for a free slot: 2 jobs run"} == decided.waiting


def test_a_large_job_is_not_overtaken_for_ever_by_small_ones() -> None:
    running = [("c", Request(1, 4))]
    decided = planned(job("a1", age=9, request=Request(2, 4)), job("a2", age=1), running=running)
    assert () == decided.start
    assert "waits for 8 CPUs: 4 are free" == decided.waiting["a1"]
    assert decided.waiting["a2"].startswith("waits for a job before it")


def test_a_job_over_its_quota_or_the_cluster_blocks_no_other() -> None:
    jobs = [job("a1", age=9, cpus=3), job("b1", age=8, request=Request(1, 5)), job("c1")]
    decided = planned(*jobs, running=[("a", Request(1, 2))], quotas={"a": Quota(cpus=4)})
    assert ("c1",) == decided.start
    assert {"a1": "waits for quota: project a uses 2 of 4 CPUs"} == decided.waiting
    assert ["b1"] == list(decided.infeasible)


def test_a_job_in_its_pause_after_a_loss_blocks_no_other() -> None:
    waiting = job("a1", age=9, not_before=AT + timedelta(seconds=1))
    assert ("a2",) == planned(waiting, job("a2")).start
    assert ("a1",) == planned(job("a1", not_before=AT)).start


def test_without_known_machines_jobs_start_and_wait_on_the_engine() -> None:
    assert ("a1",) == planned(job("a1", request=Request(9, 9, 9)), nodes=[]).start


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(2, 4, 1), 2),
        (Request(4, 4), 2),  # a worker needs one machine
        (Request(9, 1), 8),
        (Request(1, 5), 0),
        (Request(3, 0.5, 0.5), 3),
        (Request(1, 0.1, 2), 0),
        (Request(40, 0.1), 40),
        (Request(3, 1, 0, 2 * GIB), 3),
        (Request(9, 0.1, 0, 3 * GIB), 4),  # one on the first machine, three on the second
        (Request(3, 1, 0.5, 0, "H200"), 2),
        (Request(3, 1, 0, 5 * GIB, "A100"), 0),
    ],
)
def test_places_are_counted_per_machine(request_: Request, expected: int) -> None:
    assert expected == places(
        request_, MEMORY if request_.memory_bytes or request_.accelerator_type else CLUSTER
    )


@pytest.mark.parametrize(
    ("request_", "quota", "expected"),
    [
        (Request(2, 1, 1), Quota(), ""),
        (Request(3, 1, 1), Quota(), "The job requests 3 GPUs, and the cluster has 2."),
        (Request(9, 1), Quota(), "The job requests 9 CPUs, and the cluster has 8."),
        (
            Request(1, 1, 2),
            Quota(),
            "The job requests 1 x 1 CPUs and 2 GPUs, and the machines have room for 0.",
        ),
        (Request(2, 1), Quota(cpus=1), "The job requests 2 CPUs, and the quota of the project is 1."),
        (Request(1, 1, 1), Quota(gpus=0), "The job requests 1 GPUs, and the quota of the project is 0."),
    ],
)
def test_what_can_never_be_had_is_named(request_: Request, quota: Quota, expected: str) -> None:
    assert expected == missing(request_, CLUSTER, quota)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(1, 1, 1, 8 * GIB, "H200"), ""),
        (
            Request(1, 1, 1, 0, "B200"),
            "The job requests GPUs of the type B200, and the cluster has A100, H200.",
        ),
        (
            Request(1, 1, 0, 10 * GIB),
            "The job requests 10 GiB of memory per worker, and the largest machine has 9.",
        ),
        (
            Request(1, 1, 1, 5 * GIB, "A100"),
            (
                "The job requests 1 x 1 CPUs and 1 GPUs of the type A100, with 5 GiB of memory each, "
                "and the machines have room for 0."
            ),
        ),
    ],
)
def test_memory_and_types_of_gpu_that_can_never_be_had_are_named(request_: Request, expected: str) -> None:
    assert expected == missing(request_, MEMORY, Quota())
    assert missing(request_, CLUSTER, Quota()).startswith("The job requests GPUs of the type") == bool(
        request_.accelerator_type
    )


def test_a_job_waits_for_memory_that_others_use() -> None:
    running = [("b", Request(1, 1, 0, 8 * GIB))]
    decided = planned(job("a1", request=Request(1, 1, 0, 6 * GIB)), running=running, nodes=MEMORY)
    assert {"a1": "waits for 6 GiB of memory: 5 are free"} == decided.waiting
    assert ("a1",) == planned(
        job("a1", request=Request(1, 1, 0, 5 * GIB)), running=running, nodes=MEMORY
    ).start
