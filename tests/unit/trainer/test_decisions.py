"""Whether a drift event starts a retraining, and which pipeline run it starts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.pipelines.pipeline_run import PipelineRun
from flywheel_trainer.policies.decision import Drift, Reason, decide
from flywheel_trainer.policies.policy import KINDS, Policy
from flywheel_trainer.policies.triggered_run import Cause, run_for, time_range
from tests.support.builders import trainer as build
from tests.support.builders.trainer import DAY
from tests.support.builders.trainer import WINDOW_END as T

POLICY = build.policy(trigger_kinds=(), cooldown=7 * DAY, daily_budget=1)
DRIFT = build.drift()

moments = st.datetimes(datetime(2013, 1, 1), datetime(2013, 12, 31), timezones=st.just(UTC))
policies = st.builds(
    replace,
    st.just(POLICY),
    trigger_kinds=st.lists(st.sampled_from(KINDS), unique=True).map(tuple),
    cooldown=st.timedeltas(timedelta(0), 20 * DAY),
    daily_budget=st.integers(1, 3),
    dry_run=st.booleans(),
    disabled=st.booleans(),
)
drifts = st.builds(
    replace,
    st.just(DRIFT),
    kind=st.sampled_from((*KINDS, "DATA_QUALITY")),
    window_end=moments,
    data_quality_cause=st.booleans(),
)


def triggered_run(policy: Policy, drift: Drift) -> PipelineRun:
    return run_for(policy, Cause.of_drift(drift), None, spec_to_json)


NO_COOLDOWN = replace(POLICY, cooldown=timedelta(0))


@pytest.mark.parametrize(
    ("policy", "drift", "started", "active", "reason"),
    [
        (POLICY, DRIFT, [], False, Reason.STARTED),
        (replace(POLICY, disabled=True), DRIFT, [], False, Reason.DISABLED),
        (POLICY, replace(DRIFT, kind="DATA_QUALITY"), [], False, Reason.DATA_QUALITY),
        (POLICY, replace(DRIFT, data_quality_cause=True), [], False, Reason.DATA_QUALITY),
        (replace(POLICY, trigger_kinds=("CONCEPT_DRIFT",)), DRIFT, [], False, Reason.KIND_NOT_LISTED),
        (POLICY, DRIFT, [], True, Reason.RUN_ACTIVE),
        (POLICY, DRIFT, [T - 7 * DAY + timedelta(seconds=1)], False, Reason.COOLDOWN),
        (POLICY, DRIFT, [T - 7 * DAY], False, Reason.STARTED),
        (POLICY, DRIFT, [T + DAY], False, Reason.COOLDOWN),
        (NO_COOLDOWN, DRIFT, [T - timedelta(hours=2)], False, Reason.BUDGET),
        (replace(NO_COOLDOWN, daily_budget=2), DRIFT, [T - timedelta(hours=2)], False, Reason.STARTED),
        (replace(POLICY, dry_run=True), DRIFT, [], False, Reason.DRY_RUN),
    ],
)
def test_each_rule_alone_gives_its_reason(
    policy: Policy, drift: Drift, started: list[datetime], active: bool, reason: Reason
) -> None:
    assert decide(policy, drift, started, active) == reason


@given(policies, drifts, st.booleans())
def test_bad_data_never_starts_a_run(policy: Policy, drift: Drift, active: bool) -> None:
    for bad in (replace(drift, kind="DATA_QUALITY"), replace(drift, data_quality_cause=True)):
        assert decide(policy, bad, [], active) in (Reason.DATA_QUALITY, Reason.DISABLED)


@given(policies, st.lists(drifts, max_size=40))
def test_cooldown_and_daily_budget_hold_for_events_in_any_order(policy: Policy, events: list[Drift]) -> None:
    started: list[datetime] = []
    for event in events:
        if decide(policy, event, started, run_active=False) is Reason.STARTED:
            started.append(event.window_end)
    in_order = sorted(started)
    assert all(b - a >= policy.cooldown for a, b in itertools.pairwise(in_order))
    days = [at.date() for at in started]
    assert all(days.count(day) <= policy.daily_budget for day in days)


@given(policies, drifts)
def test_an_active_run_or_a_dry_run_starts_nothing(policy: Policy, drift: Drift) -> None:
    assert decide(policy, drift, [], run_active=True) is not Reason.STARTED
    assert decide(replace(policy, dry_run=True), drift, [], run_active=False) is not Reason.STARTED


def test_the_spine_covers_the_history_before_the_window_end() -> None:
    policy = replace(POLICY, history=90 * DAY)
    assert time_range(policy, DRIFT.window_end) == (T - 90 * DAY, T)
    run = triggered_run(policy, DRIFT)
    assert run.spec is not None
    assert run.spec.spine["source"] == {
        "source": "projects/p/sources/landed",
        "label": "late",
        "start_time": "2013-03-03T12:00:00Z",
        "end_time": "2013-06-01T12:00:00Z",
        "known_before": "2013-06-01T12:00:00Z",
    }
    assert run.cause_alert == DRIFT.alert
    assert run.event_time == T


def test_a_window_determines_the_name_of_its_run() -> None:
    other = replace(DRIFT, alert="projects/p/alerts/a2")
    assert triggered_run(POLICY, DRIFT).name == triggered_run(POLICY, DRIFT).name
    assert triggered_run(POLICY, DRIFT).name != triggered_run(POLICY, other).name


def test_a_later_window_of_the_same_alert_starts_another_run() -> None:
    later = replace(DRIFT, window_end=DRIFT.window_end + timedelta(days=70))
    assert triggered_run(POLICY, later).name != triggered_run(POLICY, DRIFT).name
    assert triggered_run(POLICY, later).cause_alert == DRIFT.alert
