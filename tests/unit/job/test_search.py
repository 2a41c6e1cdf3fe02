"""The search of a TUNE job: spaces, suggestions that survive a restart, early stopping, best trials."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flywheel_job.tuning.messages import (
    settings_from_json,
    settings_to_json,
    trial_from_proto,
    trial_to_proto,
)
from flywheel_job.tuning.search import OptunaSearch
from flywheel_job.tuning.settings import (
    Asha,
    Choices,
    Constraint,
    Direction,
    Fixed,
    FloatRange,
    Grid,
    IntRange,
    Objective,
    RandomSearch,
    Tpe,
    TuneSettings,
)
from flywheel_job.tuning.trial import Segment, Trial, TrialState, best_trials, schedule_of

SPACE = {
    "rate": FloatRange(1e-4, 1e-1, log=True),
    "depth": IntRange(2, 10, step=2),
    "sizes": Choices(("[64, 32]", "[8]")),
    "kind": Fixed('"net"'),
}
LOSS = Objective("loss", Direction.MINIMIZE)


def settings(**changes: object) -> TuneSettings:
    made = TuneSettings(SPACE, (LOSS,), Tpe(5), max_trials=40, seed=7)
    return replace(made, **changes)  # type: ignore[arg-type]


def loss(params: dict[str, object]) -> float:
    rate, depth = float(str(params["rate"])), float(str(params["depth"]))
    return abs(rate - 0.01) + depth / 100 + len(str(params["sizes"]))


def suggestions(chosen: TuneSettings, restart_after: set[int] = frozenset()) -> list[Trial]:  # type: ignore[assignment]
    """Trials of a search with one trial at a time, in a new process after the given numbers of trials."""
    search, done = OptunaSearch(chosen, ()), []
    while (work := search.next()) is not None:
        trial = search.trial(work.trial.number)
        result = replace(
            trial,
            state=TrialState.SUCCEEDED,
            values=(loss(trial.params),),
            violations=(trial.params["depth"] - 7,),
        )
        done.append(search.end(result))
        if len(done) in restart_after:
            search = OptunaSearch(chosen, done)
    return done


@pytest.mark.parametrize("algorithm", [Tpe(5), RandomSearch()])
def test_restarts_do_not_change_the_suggestions(algorithm: Tpe | RandomSearch) -> None:
    chosen = settings(algorithm=algorithm)
    undisturbed = suggestions(chosen)
    assert suggestions(chosen, {3, 17, 31}) == undisturbed
    assert len({trial.params_json for trial in undisturbed}) == 40
    assert suggestions(replace(chosen, seed=8)) != undisturbed


def test_a_running_trial_is_repeated_after_a_restart() -> None:
    first = OptunaSearch(settings(), ())
    started = [work.trial for work in (first.next(), first.next(), first.next()) if work]
    ended = first.end(replace(started[1], state=TrialState.SUCCEEDED, values=(0.5,)))
    again = OptunaSearch(settings(), [started[0], ended, started[2]])
    repeated = [work.trial for work in (again.next(), again.next()) if work]
    assert repeated == [started[0], started[2]]
    following = again.next()
    assert following is not None
    assert following.trial.number == 3


def test_values_are_in_their_domains() -> None:
    for trial in suggestions(settings(algorithm=RandomSearch())):
        params = trial.params
        assert list(params) == list(SPACE)
        assert 1e-4 <= params["rate"] <= 1e-1
        assert params["depth"] in (2, 4, 6, 8, 10)
        assert params["sizes"] in ([64, 32], [8])
        assert params["kind"] == "net"


def test_a_grid_has_every_combination_once() -> None:
    space = {
        "rate": FloatRange(0.1, 10, log=True, grid_points=3),
        "depth": IntRange(1, 2),
        "on": Choices(("true", "1")),
    }
    chosen = settings(space=space, algorithm=Grid(), max_trials=0)
    search, found = OptunaSearch(chosen, ()), []
    while (work := search.next()) is not None:
        found.append(tuple(work.params.values()))
        search.end(replace(work.trial, state=TrialState.FAILED))
    rates = [0.1, pytest.approx(1.0), 10]
    assert found == [(rate, depth, on) for rate in rates for depth in (1, 2) for on in (True, 1)]
    assert [one[2] for one in found[:2]] == [True, 1]
    assert [type(one[2]) for one in found[:2]] == [bool, int]
    assert settings(space=space, algorithm=Grid(), max_trials=5).trial_count == 5


def test_early_stopping_keeps_the_best_third_at_each_rung() -> None:
    chosen = settings(early_stopping=Asha(1, 3), algorithm=RandomSearch(), max_trials=9)
    search = OptunaSearch(chosen, ())
    stopped, reached = [], []
    for value in (5.0, 6.0, 4.0, 7.0, 3.0, 8.0):
        work = search.next()
        assert work is not None
        number = work.trial.number
        if search.report(number, 1, value):
            stopped.append(value)
            search.end(replace(search.trial(number), state=TrialState.STOPPED))
        else:
            reached.append(number)
    # Of the values so far, the best third, at least one: 5, then 4 (of 3), then 3 (of 5), each the best one.
    assert stopped == [6.0, 7.0, 8.0]
    # Rung 1 is at step 3; a restart keeps the values of the rungs.
    search = OptunaSearch(chosen, [search.trial(number) for number in range(6)])
    assert not search.report(reached[0], 3, 2.0)
    assert search.report(reached[1], 3, 2.5)
    assert search.trial(reached[0]).rungs == {0: 5.0, 1: 2.0}


def test_the_best_trial_is_the_first_feasible_one() -> None:
    trials = [
        Trial(0, state=TrialState.SUCCEEDED, values=(1.0,), violations=(0.5,)),
        Trial(1, state=TrialState.FAILED),
        Trial(2, state=TrialState.SUCCEEDED, values=(3.0,), violations=(0.0,)),
        Trial(3, state=TrialState.SUCCEEDED, values=(2.0,), violations=(-1.0,)),
        Trial(4, state=TrialState.SUCCEEDED, values=(2.0,), violations=(-2.0,)),
        Trial(5, state=TrialState.STOPPED, last_value=0.1),
    ]
    assert [one.number for one in best_trials(trials, [LOSS])] == [3]
    assert [one.number for one in best_trials(trials, [Objective("auc", Direction.MAXIMIZE)])] == [2]
    assert best_trials(trials[:2], [LOSS]) == []


def test_several_objectives_have_a_front() -> None:
    points = [(1.0, 5.0), (2.0, 6.0), (3.0, 6.0), (2.0, 4.0), (1.0, 5.0)]
    trials = [Trial(n, state=TrialState.SUCCEEDED, values=values) for n, values in enumerate(points)]
    both = [LOSS, Objective("auc", Direction.MAXIMIZE)]
    assert [one.number for one in best_trials(trials, both)] == [0, 1, 4]


def test_a_schedule_follows_the_checkpoints_of_a_trial() -> None:
    def segment(generation: int, source: int | None) -> Segment:
        return Segment(generation, source, json.dumps({"g": generation, "from": source}), 10, 0.0)

    trials = [
        Trial(0, segments=(segment(0, None), segment(1, 1), segment(2, 0))),
        Trial(1, segments=(segment(0, None), segment(1, 1), segment(2, 0))),
    ]
    assert schedule_of(trials, 1) == [trials[1].segments[0], trials[0].segments[1], trials[1].segments[2]]


def test_settings_and_trials_survive_their_messages() -> None:
    constraints = (Constraint("ms", at_most=0.0), Constraint("auc", at_least=0.5))
    chosen = settings(constraints=constraints, early_stopping=Asha(2))
    assert settings_from_json(settings_to_json(chosen)) == chosen
    assert [one.violation(2.0) for one in constraints] == [2.0, -1.5]
    segments = (Segment(0, 0, "{}", 5, 0.5),)
    trial = Trial(3, '{"a": 1}', TrialState.STOPPED, (), (), 9, 0.0, {0: 1.5}, segments, "R", "m")
    assert trial_from_proto(trial_to_proto(trial)) == trial
