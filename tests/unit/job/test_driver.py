"""The driver of a job: which outcome it writes, and when."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.driver import backend_of, failure_of, run, stored_output
from flywheel_job.errors import NonFiniteMetric, TrainingFailed, WorkerLost
from flywheel_job.launch import LaunchSpec, Resources
from flywheel_job.outcome import Artifact, MetricPoint, Outcome
from tests.support.training_job import launch_spec

RESULT = Outcome(
    True, artifacts=(Artifact("a", 1, "ab", "s3://b/ab"),), points=(MetricPoint("loss", 1, 0.5, 7),)
)


@pytest.fixture
def store(tmp_path: Path) -> fs.FileSystem:
    return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())


def exists(store: fs.FileSystem, uri: str) -> bool:
    return bool(objects.files_under(store, uri))


SPEC = launch_spec("unused:unused", failure_uri="s3://b/failure.json")


def test_the_success_is_written_after_the_group_has_ended(store: fs.FileSystem) -> None:
    def group(spec: LaunchSpec) -> None:
        objects.write(store, spec.result_uri, RESULT.to_json())
        assert not exists(store, spec.outcome_uri)

    assert run(SPEC, store, group) == 0
    assert Outcome.from_json(objects.read(store, SPEC.outcome_uri)) == RESULT
    assert not exists(store, SPEC.failure_uri)


def test_a_failure_of_a_rank_fails_the_job(store: fs.FileSystem) -> None:
    def group(spec: LaunchSpec) -> None:
        raise NonFiniteMetric("rank 1")

    assert run(SPEC, store, group) == 1
    found = Outcome.from_json(objects.read(store, SPEC.failure_uri))
    assert not found.succeeded
    assert (found.error_reason, found.error_message) == ("NON_FINITE_METRIC", "rank 1")
    assert not exists(store, SPEC.outcome_uri)


def test_a_failure_after_all_ranks_have_returned_is_none_of_the_job(
    store: fs.FileSystem,
) -> None:
    def group(spec: LaunchSpec) -> None:
        objects.write(store, spec.result_uri, RESULT.to_json())
        raise RuntimeError("the worker of rank 1 was killed while it ended")

    assert run(SPEC, store, group) == 0
    assert Outcome.from_json(objects.read(store, SPEC.outcome_uri)) == RESULT


def test_the_result_of_an_earlier_attempt_is_not_used(store: fs.FileSystem) -> None:
    objects.write(store, SPEC.result_uri, RESULT.to_json())
    assert run(launch_spec("unused:unused", attempt=2), store, lambda _: None) == 1
    assert not Outcome.from_json(objects.read(store, SPEC.outcome_uri)).succeeded


def test_the_rank_that_failed_first_is_the_cause() -> None:
    class Group(Exception):
        worker_failures: dict[int, BaseException]

    lost, cause = RuntimeError("Connection closed by peer"), TrainingFailed("ValueError: rank 1")
    cause.failed_at = time.time()  # type: ignore[attr-defined]
    later = TrainingFailed("RuntimeError: peer is gone")
    later.failed_at = time.time() + 1  # type: ignore[attr-defined]
    error = Group("2 workers failed")
    error.worker_failures = {0: later, 1: cause, 2: lost}
    assert failure_of(error).message == "ValueError: rank 1"


def test_a_worker_that_ray_lost_is_no_fault_of_the_code() -> None:
    kind = type("ActorDiedError", (Exception,), {"__module__": "ray.exceptions"})
    assert isinstance(failure_of(kind("node is gone")), WorkerLost)
    own = type("ActorDiedError", (Exception,), {"__module__": "train"})
    assert isinstance(failure_of(own("mine")), TrainingFailed)


def test_a_lost_worker_is_the_cause_of_the_failures_of_its_peers() -> None:
    """Ray Train wraps the loss of a worker into the failure of its health check."""

    class Group(Exception):
        worker_failures: dict[int, BaseException]

    class HealthCheckFailed(Exception):
        health_check_failure: BaseException

    killed = HealthCheckFailed("A worker health check failed.")
    killed.health_check_failure = type("ActorDiedError", (Exception,), {"__module__": "ray.exceptions"})(
        "gone"
    )
    peer = TrainingFailed("RuntimeError: Connection closed by peer")
    peer.failed_at = time.time()  # type: ignore[attr-defined]
    error = Group("2 workers failed")
    error.worker_failures = {0: peer, 1: killed}
    found = failure_of(error)
    assert (WorkerLost.reason, "A worker was lost: gone") == (found.reason, found.message)


def test_a_rank_without_a_log_address_stores_no_log(store: fs.FileSystem, tmp_path: Path) -> None:
    with stored_output(SPEC, store, 1):
        print("hello")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gpus", "expected"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl"), (2, "nccl")])
def test_ranks_that_share_a_gpu_do_not_use_nccl(gpus: float, expected: str) -> None:
    assert expected == backend_of(Resources(gpus=gpus))
