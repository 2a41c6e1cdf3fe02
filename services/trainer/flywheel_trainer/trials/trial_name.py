"""Names of trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName
from flywheel_job.tuning.launch import trial_run
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.trials.errors import UnknownTrial

MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class TrialName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/jobs/{job}/trials/{trial:any}")
    project: str
    job: str
    trial: str
    """The number of the trial."""

    @property
    def job_name(self) -> JobName:
        return JobName(self.project, self.job)

    @property
    def number(self) -> int:
        """Raises UnknownTrial for what is no number."""
        if not (self.trial.isdecimal() and self.trial.isascii() and len(self.trial) <= MAX_DIGITS):
            raise UnknownTrial.of(self)
        return int(self.trial)


def run_of(job_run: RunName, number: int) -> RunName:
    """The run of a trial of the job with this run."""
    return RunName.parse(trial_run(str(job_run), number))
