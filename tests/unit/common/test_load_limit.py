"""The limit of calls in flight that follows the lateness of the event loop."""

from __future__ import annotations

from flywheel_common.grpc import accepting
from flywheel_common.grpc.overload import LATE_TICKS, LEAST_CALLS, LoadLimit


def limit_with(open_calls: int, most: int = 1000, max_late: float = 0.01) -> LoadLimit:
    limit = LoadLimit(most, max_late)
    limit.open = open_calls
    return limit


def test_a_late_loop_reduces_the_limit_below_the_calls_in_flight() -> None:
    limit = limit_with(500)
    for _ in range(LATE_TICKS - 1):
        limit.observe(0.02)
    assert not limit.full
    limit.observe(0.02)
    assert 450 == limit.limit
    assert limit.full


def test_a_single_pause_of_the_loop_refuses_nothing() -> None:
    limit = limit_with(500)
    for _ in range(100):
        limit.observe(0.5)
        limit.observe(0.001)
    assert not limit.full


def test_the_limit_falls_while_the_loop_is_late_but_never_below_the_least() -> None:
    limit = limit_with(500)
    for _ in range(100):
        limit.observe(0.02)
    assert LEAST_CALLS == limit.limit
    limit.open = LEAST_CALLS - 1
    assert not limit.full


def test_the_limit_is_whole_again_one_second_after_the_loop_is_on_time() -> None:
    limit = limit_with(500)
    for _ in range(100):
        limit.observe(0.02)
    for _ in range(100):
        limit.observe(0.001)
    assert 1000 == limit.limit


def test_calls_that_wait_too_long_to_be_accepted_reduce_the_limit() -> None:
    limit = limit_with(500)
    limit.backlog(0.005)
    assert 1000 == limit.limit
    limit.backlog(0.02)
    assert LEAST_CALLS == limit.limit


def test_without_a_lateness_there_is_no_limit() -> None:
    limit = limit_with(5_000, max_late=0.0)
    limit.observe(10.0)
    limit.backlog(10.0)
    assert not limit.full


def test_grpcio_has_the_internal_functions_that_accept_calls() -> None:
    assert accepting.supported()


def test_a_long_queue_of_calls_refuses_all_until_none_waits() -> None:
    limit = limit_with(0)
    limit.backlog(0.05)
    assert limit.full
    limit.backlog(0.0)
    assert not limit.full
