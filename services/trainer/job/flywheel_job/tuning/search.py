"""What a search over trials has to answer, and the search by Optuna."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState as OptunaState

from flywheel_job.tuning.settings import Choices, Domain, Fixed, FloatRange, Grid, IntRange, Tpe, TuneSettings
from flywheel_job.tuning.trial import Trial, TrialState

optuna.logging.set_verbosity(optuna.logging.WARNING)

RUNG = "completed_rung_"
"""Beginning of the attributes in which Optuna's successive halving keeps the value at each rung."""
_STATES = {
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.SUCCEEDED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.CANCELLED: OptunaState.FAIL,
}


@dataclass(frozen=True)
class Work:
    """A piece of work for one worker: a trial, or a segment of it."""

    trial: Trial
    params: Mapping[str, Any]
    until_step: int = 0
    """Population-based training: the step after which the piece ends; 0: the end of the function."""
    checkpoints: str = ""
    """Folder of its checkpoints, below that of the job."""
    initial_checkpoint: str = ""
    """Folder with the checkpoint that it begins with, or empty."""
    export: bool = True
    """Whether the model is exported at the end of the piece."""


class Search(Protocol):
    """Chooses pieces of work from the results of earlier ones; a function of the stored trials and the seed.

    - `next` returns a piece to start, or None if there is none before another one has ended. The trial is
      stored before the piece starts.
    - `report` takes a value of the first objective of a running trial, and returns whether it must stop.
    - `end` takes the result of a piece, and returns the trial as it is to be stored: `result.state` is
      SUCCEEDED, STOPPED or FAILED.
    - `trial` returns the trial as it is now.
    """

    def next(self) -> Work | None: ...

    def report(self, number: int, step: int, value: float) -> bool: ...

    def end(self, result: Trial) -> Trial: ...

    def trial(self, number: int) -> Trial: ...


class OptunaSearch:
    """`Search` by grid, independent values or TPE, with ASHA early stopping.

    Every suggestion has a sampler of its own, whose seed is a function of the seed of the search and the
    number of the trial. So a suggestion depends on the results of earlier trials alone, not on what a process
    did before it.
    """

    def __init__(self, settings: TuneSettings, trials: Sequence[Trial]) -> None:
        self._settings = settings
        self._space = {name: _distribution(domain) for name, domain in settings.space.items()}
        stopping = settings.early_stopping
        self._study = optuna.create_study(
            directions=[one.direction.lower() for one in settings.objectives],
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=stopping.min_steps, reduction_factor=stopping.reduction_factor
            )
            if stopping
            else optuna.pruners.NopPruner(),
        )
        self._trials: dict[int, Trial] = {}
        self._asked: dict[int, optuna.trial.Trial] = {}
        for trial in sorted(trials, key=lambda one: one.number):
            self._study.add_trial(self._frozen(trial))
            self._trials[trial.number] = trial
        self._interrupted = [trial.number for trial in self._trials.values() if not trial.ended]
        for number in self._interrupted:
            frozen = self._study.get_trials(deepcopy=False)[number]
            self._asked[number] = optuna.trial.Trial(self._study, frozen._trial_id)  # noqa: SLF001

    def next(self) -> Work | None:
        if self._interrupted:
            trial = self._trials[self._interrupted.pop(0)]
        elif len(self._trials) < self._settings.trial_count:
            trial = self._ask(len(self._trials))
        else:
            return None
        return Work(trial, trial.params, checkpoints=f"trials/{trial.number}")

    def report(self, number: int, step: int, value: float) -> bool:
        trial, asked = self._trials[number], self._asked[number]
        if self._settings.early_stopping is None or step <= trial.last_step:
            return False
        asked.report(value, step)
        stop = asked.should_prune()
        attributes = self._study.get_trials(deepcopy=False)[number].system_attrs
        rungs = {int(key.removeprefix(RUNG)): v for key, v in attributes.items() if key.startswith(RUNG)}
        self._trials[number] = replace(trial, last_step=step, last_value=value, rungs=rungs)
        return stop

    def end(self, result: Trial) -> Trial:
        asked, state = self._asked.pop(result.number), _STATES[result.state]
        for position, violation in enumerate(result.violations):
            asked.set_constraint(str(position), violation)
        values = list(result.values) if result.state is TrialState.SUCCEEDED else None
        self._study.tell(asked, values, state)
        self._trials[result.number] = result
        return result

    def trial(self, number: int) -> Trial:
        return self._trials[number]

    def _ask(self, number: int) -> Trial:
        if isinstance(self._settings.algorithm, Grid):
            point = self._settings.grid_point(number)
            self._study.enqueue_trial({name: _to_optuna(self._space[name], v) for name, v in point.items()})
        self._study.sampler = self._sampler(number)
        asked = self._study.ask(self._space)
        assert asked.number == number
        params = {name: _from_optuna(self._space[name], v) for name, v in asked.params.items()}
        ordered = {name: params[name] for name in self._space}
        self._asked[number] = asked
        self._trials[number] = Trial(number, json.dumps(ordered))
        return self._trials[number]

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derived_seed(self._settings.seed, number)
        if isinstance(self._settings.algorithm, Tpe):
            startup = self._settings.algorithm.startup_trials
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        return optuna.samplers.RandomSampler(seed=seed)

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        """The trial as Optuna keeps it."""
        values: list[float] | None = None
        if trial.state is TrialState.SUCCEEDED:
            values = list(trial.values)
        elif trial.state is TrialState.STOPPED and trial.last_value is not None:
            values = [trial.last_value]
        reported = trial.ended and trial.last_value is not None
        return optuna.trial.create_trial(
            state=_STATES[trial.state],
            values=values,
            params={name: _to_optuna(self._space[name], value) for name, value in trial.params.items()},
            distributions=self._space,
            system_attrs={f"{RUNG}{rung}": value for rung, value in trial.rungs.items()},
            intermediate_values={trial.last_step: trial.last_value} if reported else None,
            constraints={str(n): v for n, v in enumerate(trial.violations)} or None,
        )


def derived_seed(seed: int, *parts: int) -> int:
    """A seed below 2^32 for a part of the search."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case FloatRange():
            return FloatDistribution(domain.low, domain.high, log=domain.log)
        case IntRange():
            last = domain.low + (domain.grid_size() - 1) * domain.step
            return IntDistribution(domain.low, last, log=domain.log, step=domain.step)
        case Choices():
            return CategoricalDistribution(domain.values_json)
        case Fixed():
            return CategoricalDistribution((domain.value_json,))


def _to_optuna(distribution: BaseDistribution, value: Any) -> Any:
    """Optuna gets choices as the texts in which they were given."""
    if not isinstance(distribution, CategoricalDistribution):
        return value
    return next(text for text in distribution.choices if _same(json.loads(str(text)), value))


def _from_optuna(distribution: BaseDistribution, value: Any) -> Any:
    return json.loads(value) if isinstance(distribution, CategoricalDistribution) else value


def _same(one: Any, other: Any) -> bool:
    """Equal in JSON: 1, 1.0 and true differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
