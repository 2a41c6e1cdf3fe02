"""Validation of the records of trials, which code of users could send with the token of its attempt."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from flywheel_job.tuning.settings import TuneSettings
from flywheel_job.tuning.trial import Trial, TrialState
from flywheel_trainer.jobs.tune_spec import MAX_MEMBERS, MAX_TRIALS
from flywheel_trainer.trials.errors import InvalidTrial

MAX_PARAMS_CHARACTERS = 1 << 20
MAX_STEP = 1 << 62
MAX_RUNGS = 100


def check_trial(trial: Trial, settings: TuneSettings) -> None:
    """Raises InvalidTrial unless the trial can be one of a search with these settings."""
    for problem in _problems(trial, settings):
        raise InvalidTrial(f"Trial {trial.number} {problem}.", field="trial")


def _problems(trial: Trial, settings: TuneSettings) -> Iterator[str]:
    if trial.number >= MAX_TRIALS:
        yield f"has a number that is not below {MAX_TRIALS}"
    if len(trial.segments) > MAX_MEMBERS or len(trial.rungs) > MAX_RUNGS:
        yield "has too many segments or rungs"
    texts = [trial.params_json, *(one.params_json for one in trial.segments)]
    if not all(_is_object(text) for text in texts):
        yield "has params that are no JSON objects"
    if max([trial.last_step, *(one.until_step for one in trial.segments)]) > MAX_STEP:
        yield "has a step that is too large"
    numbers = [*trial.values, *trial.violations, *trial.rungs.values(), trial.last_value or 0.0]
    if not all(map(math.isfinite, [*numbers, *(one.value for one in trial.segments)])):
        yield "has a number that is not finite"
    succeeded = trial.state is TrialState.SUCCEEDED
    expected = (len(settings.objectives), len(settings.constraints)) if succeeded else (0, 0)
    if (len(trial.values), len(trial.violations)) != expected:
        yield f"is {trial.state} with {len(trial.values)} values and {len(trial.violations)} violations"


def _is_object(text: str) -> bool:
    try:
        return len(text) <= MAX_PARAMS_CHARACTERS and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
