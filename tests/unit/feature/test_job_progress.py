"""Progress of jobs with several stages."""

from __future__ import annotations

import pytest

from flywheel_feature.jobs.progress import Stages
from flywheel_feature.jobs.runner import JobCancelled


class Job:
    """Records reported progress; it is cancelled."""

    def __init__(self) -> None:
        self.reported: list[tuple[int, int, str, str]] = []

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        self.reported.append((done, total, unit, message))

    def check_cancelled(self) -> None:
        raise JobCancelled


def test_stages_add_up_to_a_percentage_that_never_falls() -> None:
    job = Job()
    stages = Stages(job)
    stages.progress(0, 0, "rows", "waiting")
    stages.begin(until=40)
    stages.progress(1, 2, "views", "joining")
    stages.progress(2, 2, "views", "joined")
    stages.begin(until=100)
    stages.progress(0, 1000, "rows", "writing")
    stages.progress(1, 2, "rows", "writing")
    assert [0, 20, 40, 40, 70] == [t[0] for t in job.reported]
    assert {(100, "%")} == {(t[1], t[2]) for t in job.reported}
    assert ("waiting", "joining") == (job.reported[0][3], job.reported[1][3])


def test_a_restart_never_reports_less_than_the_first_start() -> None:
    job = Job()
    stages = Stages(job, reached=30)
    stages.begin(until=50)
    for done in range(6):
        stages.progress(done, 5, "rows")
    assert [30, 30, 30, 30, 40, 50] == [t[0] for t in job.reported]


def test_cancellation_of_the_job_reaches_the_stages() -> None:
    with pytest.raises(JobCancelled):
        Stages(Job()).check_cancelled()
