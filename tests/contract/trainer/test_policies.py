"""One law for retraining policies and what they decide, in memory, in PostgreSQL and through gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from flywheel_common.errors import InvalidArgument
from flywheel_protos.feature.v1.training_set_pb2 import Spine
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.pipelines.pipeline_run import PipelineSpec
from flywheel_trainer.policies.decision import Decision, Drift, Reason
from flywheel_trainer.policies.policy import Policy, PolicyName

AT = datetime(2026, 1, 1, tzinfo=UTC)
T = datetime(2013, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SPEC = PipelineSpec(
    model="projects/p/models/late",
    feature_set="projects/p/featureSets/late",
    spine={"source": {"source": "projects/p/sources/landed", "label": "late"}},
    train=TrainSpec("late", ""),
)
POLICY = Policy("p", "late", asdict(SPEC), ("DATA_DRIFT", "LABEL_DRIFT"), 7 * DAY, 2, 30 * DAY)
NAME = PolicyName("p", "late")


def policy_of(project: str, **fields: Any) -> Policy:
    spec = replace(
        SPEC, model=f"projects/{project}/models/late", feature_set=f"projects/{project}/featureSets/late"
    )
    return replace(POLICY, project=project, pipeline=asdict(spec), **fields)


def drift(alert: str, at: datetime = T, kind: str = "DATA_DRIFT", **fields: Any) -> Drift:
    return Drift(f"projects/p/alerts/{alert}", SPEC.model, kind, at, **fields)


async def decided(stores: Any, name: PolicyName = NAME, size: int = 99) -> list[Decision]:
    """Newest first, page by page."""
    found, token = [], ""
    while True:
        page = await stores.policies.decisions(name, size, token)
        found += page.items
        token = page.next_page_token
        if not token:
            return found


async def test_a_policy_replaces_the_one_before_and_belongs_to_its_model(stores: Any) -> None:
    assert await stores.policies.get(NAME) is None
    assert POLICY == await stores.policies.set(POLICY, "", b"", AT)
    newer = replace(POLICY, cooldown=timedelta(hours=1.5), trigger_kinds=(), dry_run=True, disabled=True)
    assert newer == await stores.policies.set(newer, "", b"", AT)
    assert newer == await stores.policies.get(NAME)
    assert await stores.policies.get(PolicyName("q", "late")) is None
    other = policy_of("q")
    await stores.policies.set(other, "", b"", AT)
    assert (newer, other) == (
        await stores.policies.get(NAME),
        await stores.policies.get(PolicyName("q", "late")),
    )


async def test_a_repeated_request_sets_nothing_again_and_another_body_is_refused(stores: Any) -> None:
    answers = await asyncio.gather(*(stores.policies.set(POLICY, "once", b"body", AT) for _ in range(10)))
    assert [POLICY] * 10 == answers
    newer = replace(POLICY, daily_budget=5)
    await stores.policies.set(newer, "later", b"newer", AT)
    assert POLICY == await stores.policies.set(POLICY, "once", b"body", AT)
    assert newer == await stores.policies.get(NAME), "a repeat that comes late does not undo what came since"
    with pytest.raises(InvalidArgument) as reused:
        await stores.policies.set(replace(POLICY, daily_budget=9), "once", b"other", AT)
    assert "REQUEST_ID_REUSED" == reused.value.reason
    assert newer == await stores.policies.get(NAME)


async def test_a_decision_that_starts_a_run_makes_both(stores: Any) -> None:
    await stores.policies.set(POLICY, "", b"", AT)
    await stores.decide(drift("a1"), AT)
    (decision,) = await decided(stores)
    (run,) = (await stores.pipelines.list("p", 9, "")).items
    assert (
        Decision(NAME, "projects/p/alerts/a1", SPEC.model, T, True, Reason.STARTED, str(run.name)) == decision
    )
    assert (T, "projects/p/alerts/a1", JobState.QUEUED) == (run.event_time, run.cause_alert, run.state)
    source = ParseDict(dict(run.spec.spine), Spine()).source
    assert ("projects/p/sources/landed", "late") == (source.source, source.label)
    times = (source.start_time, source.end_time, source.known_before)
    assert [T - 30 * DAY, T, T] == [at.ToDatetime(tzinfo=UTC) for at in times]
    assert replace(SPEC, spine={}) == replace(run.spec, spine={})


async def test_a_window_is_decided_once_and_the_next_one_of_the_alert_anew(stores: Any) -> None:
    await stores.policies.set(POLICY, "", b"", AT)
    await asyncio.gather(*(stores.decide(drift("a1"), AT) for _ in range(5)))
    await stores.decide(drift("a1", kind="LABEL_DRIFT"), AT)
    assert [Reason.STARTED] == [d.reason for d in await decided(stores)]
    (run,) = (await stores.pipelines.list("p", 9, "")).items
    await stores.decide(drift("a1", T + DAY), AT)
    await stores.pipelines.finish(run.name, JobState.SUCCEEDED, "", "", AT)
    await stores.decide(drift("a1", T + 2 * DAY), AT)
    await stores.decide(drift("a1", T + 8 * DAY), AT)
    assert [(T + 8 * DAY, Reason.STARTED), (T + 2 * DAY, Reason.COOLDOWN), (T + DAY, Reason.RUN_ACTIVE), (T, Reason.STARTED)] == [
        (d.event_time, d.reason) for d in await decided(stores)
    ]  # fmt: skip
    assert 2 == len((await stores.pipelines.list("p", 9, "")).items)


async def test_decisions_made_at_once_see_each_other(stores: Any) -> None:
    await stores.policies.set(replace(POLICY, cooldown=timedelta(0), daily_budget=9), "", b"", AT)
    await asyncio.gather(*(stores.decide(drift(f"a{i}"), AT) for i in range(6)))
    reasons = sorted(d.reason for d in await decided(stores))
    assert [Reason.RUN_ACTIVE] * 5 + [Reason.STARTED] == reasons
    assert 1 == len((await stores.pipelines.list("p", 9, "")).items)


async def test_what_starts_nothing_is_remembered_with_its_reason(stores: Any) -> None:
    await stores.policies.set(replace(POLICY, dry_run=True), "", b"", AT)
    await stores.decide(drift("a1", data_quality_cause=True), AT)
    await stores.decide(drift("a2", kind="CONCEPT_DRIFT"), AT)
    await stores.decide(drift("a3"), AT)
    await stores.policies.set(replace(POLICY, disabled=True), "", b"", AT)
    await stores.decide(drift("a4"), AT)
    found = await decided(stores)
    assert [Reason.DISABLED, Reason.DRY_RUN, Reason.KIND_NOT_LISTED, Reason.DATA_QUALITY] == [
        d.reason for d in found
    ]
    assert {(False, "")} == {(d.started, d.pipeline_run) for d in found}
    assert [] == list((await stores.pipelines.list("p", 9, "")).items)


async def test_drift_of_a_model_without_a_policy_is_nobodys(stores: Any) -> None:
    await stores.policies.set(policy_of("q"), "", b"", AT)
    await stores.decide(drift("a1"), AT)
    assert [] == list((await stores.pipelines.list("p", 9, "")).items)
    await stores.policies.set(POLICY, "", b"", AT)
    assert [] == await decided(stores), "and is not made up for"
    await stores.decide(drift("a1"), AT)
    assert [Reason.STARTED] == [d.reason for d in await decided(stores)]
    assert [] == await decided(stores, PolicyName("q", "late"))


async def test_decisions_are_listed_newest_first_page_by_page(stores: Any) -> None:
    await stores.policies.set(replace(POLICY, disabled=True), "", b"", AT)
    await stores.policies.set(policy_of("q"), "", b"", AT)
    for number in (3, 1, 4, 2, 5):
        await stores.decide(drift(f"a{number}", T + number * DAY), AT)
    for size in (1, 2, 5, 99):
        found = await decided(stores, size=size)
        assert ["a5", "a2", "a4", "a1", "a3"] == [d.alert.rsplit("/", 1)[1] for d in found]
    token = (await stores.policies.decisions(NAME, 2, "")).next_page_token
    with pytest.raises(InvalidArgument) as foreign:
        await stores.policies.decisions(PolicyName("q", "late"), 2, token)
    assert "INVALID_PAGE_TOKEN" == foreign.value.reason
