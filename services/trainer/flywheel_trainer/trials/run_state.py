"""What the run of a trial shows of it."""

from __future__ import annotations

import json

from flywheel_job.outcome import Outcome
from flywheel_job.tuning.trial import Trial, TrialState
from flywheel_trainer.jobs.ending import storable
from flywheel_trainer.runs.run import RunState

_STATES = {
    TrialState.SUCCEEDED: RunState.SUCCEEDED,
    TrialState.STOPPED: RunState.CANCELLED,
    TrialState.FAILED: RunState.FAILED,
    TrialState.CANCELLED: RunState.CANCELLED,
}


def ended_run_state(state: TrialState) -> RunState:
    """The state of the run of a trial that has ended."""
    return _STATES[state]


def params_of(trial: Trial) -> dict[str, str]:
    """The parameters of a trial as those of a run."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in trial.params.items()
    }
    return storable(Outcome(True, params=texts)).params
