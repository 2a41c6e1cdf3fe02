"""Population-based training as a function of the stored segments and the seed.

Members train a generation each; when all have ended it, the worst share continues from the checkpoints of the
best share, with parameters that are multiplied or drawn anew. A member is a trial, and each of its
generations a segment, which is stored with its parameters and its source. So an interrupted search continues
with the segments that are missing, and the segments along the sources of the winner are a schedule for a
plain TRAIN job.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flywheel_job.tuning.search import Work, derived_seed
from flywheel_job.tuning.settings import (
    Choices,
    Direction,
    Domain,
    Fixed,
    FloatRange,
    IntRange,
    Population,
    TuneSettings,
)
from flywheel_job.tuning.trial import Segment, Trial, TrialState

FACTORS = (0.8, 1.2)


class PopulationSearch:
    """`Search` by population-based training; a failed member is left out from then on."""

    def __init__(self, settings: TuneSettings, trials: Sequence[Trial]) -> None:
        assert isinstance(settings.algorithm, Population)
        self._settings, self._population = settings, settings.algorithm
        stored = {trial.number: trial for trial in trials}
        self._trials = {number: stored.get(number, Trial(number)) for number in range(self._population.size)}
        self._started: set[tuple[int, int]] = set()
        """(number, generation) of the pieces that this process has started."""
        self._sources: dict[tuple[int, int], int | None] = {}

    def next(self) -> Work | None:
        living = [trial for trial in self._trials.values() if trial.state is TrialState.RUNNING]
        generation = min((len(trial.segments) for trial in living), default=self._population.generations)
        for trial in living:
            if len(trial.segments) == generation and (trial.number, generation) not in self._started:
                return self._piece(trial, generation)
        return None

    def report(self, number: int, step: int, value: float) -> bool:
        return False

    def end(self, result: Trial) -> Trial:
        trial = self._trials[result.number]
        if result.state is TrialState.SUCCEEDED:
            generation = len(trial.segments)
            segment = Segment(
                generation,
                self._sources[trial.number, generation],
                trial.params_json,
                result.last_step,
                result.values[0],
            )
            segments = (*trial.segments, segment)
            finished = len(segments) == self._population.generations
            result = replace(
                result,
                state=TrialState.SUCCEEDED if finished else TrialState.RUNNING,
                segments=segments,
                values=result.values if finished else (),
                violations=result.violations if finished else (),
            )
        self._trials[result.number] = result
        return result

    def trial(self, number: int) -> Trial:
        return self._trials[number]

    def unused_checkpoints(self) -> list[str]:
        """Folders of the generation before the one from which the population now continues."""
        living = [trial for trial in self._trials.values() if trial.state is not TrialState.FAILED]
        complete = min((len(trial.segments) for trial in living), default=0)
        # The checkpoints of generation `complete - 1` are sources now, those before it no longer.
        if complete < 2 or any(len(trial.segments) > complete for trial in living):
            return []
        return [_folder(number, complete - 2) for number in self._trials]

    def _piece(self, trial: Trial, generation: int) -> Work:
        number = trial.number
        if generation == 0:
            source, params = None, self._first_params(number)
        else:
            source = self._source(number, generation)
            params = self._trials[source].segments[generation - 1].params
            if source != number:
                params = self._explored(params, number, generation)
        self._sources[number, generation] = source
        self._started.add((number, generation))
        trial = replace(trial, params_json=json.dumps(params))
        self._trials[number] = trial
        return Work(
            trial,
            params,
            until_step=(generation + 1) * self._population.interval_steps,
            checkpoints=_folder(number, generation),
            initial_checkpoint="" if source is None else _folder(source, generation - 1),
            export=generation + 1 == self._population.generations,
        )

    def _source(self, number: int, generation: int) -> int:
        """The member whose checkpoint this one continues from; a function of the last generation's values."""
        ended = [trial for trial in self._trials.values() if len(trial.segments) >= generation]
        sign = -1.0 if self._settings.objectives[0].direction is Direction.MAXIMIZE else 1.0

        def cost(trial: Trial) -> tuple[float, int]:
            return sign * trial.segments[generation - 1].value, trial.number

        ranked = [trial.number for trial in sorted(ended, key=cost)]
        share = min(math.ceil(len(ranked) * self._population.quantile), len(ranked) // 2)
        if share == 0 or number not in ranked[-share:]:
            return number
        return self._random(number, generation, 0).choice(ranked[:share])

    def _first_params(self, number: int) -> dict[str, Any]:
        generator = self._random(number, 0, 1)
        return {name: _drawn(domain, generator) for name, domain in self._settings.space.items()}

    def _explored(self, params: dict[str, Any], number: int, generation: int) -> dict[str, Any]:
        generator = self._random(number, generation, 1)
        return {
            name: _drawn(domain, generator)
            if generator.random() < self._population.resample_probability
            else _perturbed(domain, params[name], generator)
            for name, domain in self._settings.space.items()
        }

    def _random(self, *parts: int) -> random.Random:
        return random.Random(derived_seed(self._settings.seed, *parts))


def _folder(number: int, generation: int) -> str:
    return f"trials/{number}/generation-{generation}"


def _drawn(domain: Domain, generator: random.Random) -> Any:
    """A value of the domain."""
    match domain:
        case FloatRange(low, high, log):
            if not log:
                return generator.uniform(low, high)
            return _clipped(math.exp(generator.uniform(math.log(low), math.log(high))), low, high)
        case IntRange(low, high, True):
            drawn = math.exp(generator.uniform(math.log(low), math.log(high + 1)))
            return int(_clipped(math.floor(drawn), low, high))
        case IntRange():
            return domain.low + domain.step * generator.randrange(domain.grid_size())
        case Choices(values):
            return json.loads(generator.choice(values))
        case Fixed(value):
            return json.loads(value)


def _perturbed(domain: Domain, value: Any, generator: random.Random) -> Any:
    """A value near `value`: a number is multiplied, a choice moves to a neighbour in the given order."""
    match domain:
        case FloatRange(low, high):
            return _clipped(value * generator.choice(FACTORS), low, high)
        case IntRange(low, high):
            moved = low + round((value * generator.choice(FACTORS) - low) / domain.step) * domain.step
            last = low + (domain.grid_size() - 1) * domain.step
            return int(_clipped(moved, low, min(high, last)))
        case Choices(values):
            texts = [json.dumps(json.loads(one), sort_keys=True) for one in values]
            position = texts.index(json.dumps(value, sort_keys=True)) + generator.choice((-1, 1))
            return json.loads(values[int(_clipped(position, 0, len(values) - 1))])
        case Fixed(text):
            return json.loads(text)


def _clipped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
