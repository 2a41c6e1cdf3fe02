"""Contract tests of alert stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.paging import Page
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.alerts.filter import parse_filter
from flywheel_monitor.alerts.lifecycle import AlertState, Kind
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.names import AlertName
from tests.support.builders.monitor import (
    MODEL,
    START_US,
    hour,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor

DELAY = FeatureDrift(
    "v__delay", 0.5, 0.25, 0.125, 1e-9, None, None, 2e-9, -1.5, 0.0, 0.0, 0.01, Verdict.DRIFT, "PSI 0.250"
)
CARRIER = FeatureDrift(
    "v__carrier", 0.1, 0.05, None, None, 12.5, 0.5, 0.5, None, 0.25, 0.125, 0.5, Verdict.WARNING, "moved"
)


async def opened(
    monitor: LocalMonitor, alert: str = "a1", kind: Kind = Kind.DATA_DRIFT, **fields: Any
) -> str:
    """The name of a new alert of a version that has made a prediction."""
    batch = predictions([f"for-{alert}"], **fields)
    await monitor.predicted(batch)
    async with monitor.store.transaction() as records:
        version = await records.version(batch.key.model_version)
        await records.lock(version.id)
        assert await records.unresolved(version.id, kind) is None
        return await records.open_alert(
            alert, version, kind, hour(3), [DELAY, CARRIER], "drift in 2 features"
        )


async def alert_of(monitor: LocalMonitor, name: str) -> Alert:
    async with monitor.store.reading() as records:
        return await records.alert(AlertName.parse(name))


async def alert_page(
    monitor: LocalMonitor, project: str = "p", filter_text: str = "", size: int = 99, token: str = ""
) -> Page[Alert]:
    async with monitor.store.reading() as records:
        return await records.alerts(project, parse_filter(filter_text), size, token)


async def acknowledge(monitor: LocalMonitor, name: str, by: str) -> Alert:
    async with monitor.store.transaction() as records:
        return await records.acknowledge_alert(AlertName.parse(name), by)


async def resolve(monitor: LocalMonitor, name: str, reason: str) -> Alert:
    async with monitor.store.transaction() as records:
        return await records.resolve_alert(AlertName.parse(name), reason)


async def names(
    monitor: LocalMonitor, filter_text: str = "", project: str = "p", size: int = 99
) -> list[str]:
    """Ids of the alerts, page by page."""
    found, token = [], ""
    while True:
        page = await alert_page(monitor, project, filter_text, size, token)
        assert len(page.items) <= size
        found += [a.name.rsplit("/", 1)[1] for a in page.items]
        token = page.next_page_token
        if not token:
            return found


async def test_an_alert_reads_back_as_it_was_opened(monitor: LocalMonitor) -> None:
    name = await opened(monitor)
    assert "projects/p/alerts/a1" == name
    found = await alert_of(monitor, name)
    assert (MODEL, version_name(), Kind.DATA_DRIFT) == (
        found.model,
        found.model_version,
        found.kind,
    )
    assert (AlertState.OPEN, hour(3), hour(3).end_us) == (found.state, found.span, found.last_window_end_us)
    assert ((DELAY, CARRIER), "drift in 2 features") == (found.features, found.reason)
    assert (None, "", "") == (found.resolved_at, found.acknowledged_by, found.resolved_reason)
    assert abs(datetime.now(UTC) - found.opened_at) < timedelta(minutes=5)
    assert [found] == list((await alert_page(monitor, "p")).items)
    for absent in ("projects/p/alerts/none", "projects/q/alerts/a1"):
        with pytest.raises(NotFound) as unknown:
            await alert_of(monitor, absent)
        assert "UNKNOWN_ALERT" == unknown.value.reason


async def test_alerts_are_listed_newest_first_by_page_and_filter(monitor: LocalMonitor) -> None:
    await opened(monitor, "z1", Kind.DATA_DRIFT)
    await opened(monitor, "a2", Kind.CONCEPT_DRIFT)
    await opened(monitor, "m3", Kind.DATA_DRIFT, version=2, release=2)
    await opened(monitor, "b4", Kind.DATA_DRIFT, model="projects/p/models/other")
    await opened(monitor, "c5", Kind.DATA_DRIFT, model="projects/q/models/late")
    await acknowledge(monitor, "projects/p/alerts/a2", "ann")
    await resolve(monitor, "projects/p/alerts/m3", "seen")
    for size in (1, 2, 3, 99):
        assert ["b4", "m3", "a2", "z1"] == await names(monitor, size=size)
    assert ["c5"] == await names(monitor, project="q")
    assert ["m3", "a2", "z1"] == await names(monitor, f"model={MODEL}", size=2)
    assert ["b4", "m3", "z1"] == await names(monitor, "kind=DATA_DRIFT", size=2)
    assert ["b4", "z1"] == await names(monitor, "state=OPEN")
    assert ["a2"] == await names(monitor, "state=ACKNOWLEDGED")
    assert ["m3"] == await names(monitor, "state=RESOLVED AND kind=DATA_DRIFT")
    assert [] == await names(monitor, "state=RESOLVED AND kind=LABEL_DRIFT")
    token = (await alert_page(monitor, "p", "", 2)).next_page_token
    for project, filter_text in (("q", ""), ("p", "state=OPEN")):
        with pytest.raises(InvalidArgument) as foreign:
            await alert_page(monitor, project, filter_text, 2, token)
        assert "INVALID_PAGE_TOKEN" == foreign.value.reason
    for wrong in ("state=ODD", "kind=", "colour=red"):
        with pytest.raises(InvalidArgument) as unclear:
            await alert_page(monitor, "p", wrong)
        assert "INVALID_FILTER" == unclear.value.reason


async def test_the_first_acknowledgement_counts_and_none_after_resolving(monitor: LocalMonitor) -> None:
    name = await opened(monitor)
    before = await alert_of(monitor, name)
    acknowledged = await acknowledge(monitor, name, "ann")
    assert replace(before, state=AlertState.ACKNOWLEDGED, acknowledged_by="ann") == acknowledged
    assert acknowledged == await acknowledge(monitor, name, "bob")
    resolved = await resolve(monitor, name, "the sensor is back")
    assert (AlertState.RESOLVED, "ann", "the sensor is back") == (
        resolved.state,
        resolved.acknowledged_by,
        resolved.resolved_reason,
    )
    with pytest.raises(FailedPrecondition) as over:
        await acknowledge(monitor, name, "eve")
    assert "ALERT_RESOLVED" == over.value.reason
    assert resolved == await alert_of(monitor, name)
    with pytest.raises(NotFound) as unknown:
        await acknowledge(monitor, "projects/p/alerts/none", "ann")
    assert "UNKNOWN_ALERT" == unknown.value.reason


async def test_an_alert_keeps_its_first_resolution_reason(monitor: LocalMonitor) -> None:
    name = await opened(monitor)
    resolved = await resolve(monitor, name, "first")
    assert resolved.resolved_at >= resolved.opened_at
    assert resolved == await resolve(monitor, name, "second") == await alert_of(monitor, name)
    async with monitor.store.transaction() as records:
        await records.end_alert(await monitor.version_id(), Kind.DATA_DRIFT, "third")
    assert resolved == await alert_of(monitor, name)
    with pytest.raises(NotFound) as unknown:
        await resolve(monitor, "projects/p/alerts/none", "why")
    assert "UNKNOWN_ALERT" == unknown.value.reason


async def test_a_confirming_window_replaces_the_evidence(monitor: LocalMonitor) -> None:
    name = await opened(monitor)
    await acknowledge(monitor, name, "ann")
    before = await alert_of(monitor, name)
    version = await monitor.version_id()
    for number, reason in ((5, "newer"), (4, "revised")):
        async with monitor.store.transaction() as records:
            await records.confirm_alert(version, Kind.DATA_DRIFT, hour(number), [CARRIER], reason)
            await records.confirm_alert(version, Kind.LABEL_DRIFT, hour(9), [], "there is none")
    confirmed = replace(before, last_window_end_us=hour(5).end_us, features=(CARRIER,), reason="revised")
    assert confirmed == await alert_of(monitor, name)


async def test_ending_resolves_one_kind_and_the_next_alert_is_new(monitor: LocalMonitor) -> None:
    first, other = await opened(monitor, "a1"), await opened(monitor, "a2", Kind.LABEL_DRIFT)
    version = await monitor.version_id()
    async with monitor.store.transaction() as records:
        await records.end_alert(version, Kind.DATA_DRIFT, "3 windows without it")
    ended = await alert_of(monitor, first)
    assert (AlertState.RESOLVED, "3 windows without it") == (ended.state, ended.resolved_reason)
    assert AlertState.OPEN == (await alert_of(monitor, other)).state
    await opened(monitor, "a3")
    assert ["a3", "a2", "a1"] == await names(monitor)
    assert ended == await alert_of(monitor, first)


async def test_alerts_of_a_version_that_no_longer_serves_are_resolved(monitor: LocalMonitor) -> None:
    start = START_US
    await opened(monitor, "a1", times=[start])
    await opened(monitor, "a2", Kind.DATA_QUALITY, times=[start + 50])
    await monitor.predicted(predictions(["x", "y"], times=[start + 50, start + 50]))
    await monitor.predicted(predictions(["wrong"], times=[start + 10**15]))
    await opened(monitor, "b1", version=2, release=2, times=[start])
    await monitor.predicted(predictions(["s"], role=3, times=[start + 99]))
    await acknowledge(monitor, "projects/p/alerts/a2", "ann")
    version = await monitor.version_id()
    for since in (start + 50, start + 51):
        assert ["b1", "a1"] == await names(monitor, "state=OPEN")
        async with monitor.store.transaction() as records:
            await records.retire_alerts(version, since)
    assert ["a2", "a1"] == await names(monitor, "state=RESOLVED"), "shadow and single predictions"
    assert "the version no longer serves" == (await alert_of(monitor, "projects/p/alerts/a2")).resolved_reason


async def test_a_rolled_back_transaction_opens_no_alert(monitor: LocalMonitor) -> None:
    await opened(monitor)
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            version = await records.version(version_name())
            await records.open_alert("a9", version, Kind.LABEL_DRIFT, hour(3), [], "why")
            await records.end_alert(version.id, Kind.DATA_DRIFT, "why")
            raise ZeroDivisionError
    assert ["a1"] == await names(monitor, "state=OPEN")


async def test_the_unresolved_alert_is_that_of_its_version_and_kind(monitor: LocalMonitor) -> None:
    await opened(monitor, "a1", Kind.DATA_DRIFT)
    await opened(monitor, "b1", Kind.DATA_DRIFT, version=2, release=2)
    version = await monitor.version_id()
    await acknowledge(monitor, "projects/p/alerts/a1", "ann")
    async with monitor.store.transaction() as records:
        found = await records.unresolved(version, Kind.DATA_DRIFT)
        assert ("projects/p/alerts/a1", AlertState.ACKNOWLEDGED) == (found.name, found.state)
        assert await records.unresolved(version, Kind.LABEL_DRIFT) is None
        await records.end_alert(version, Kind.DATA_DRIFT, "over")
        assert await records.unresolved(version, Kind.DATA_DRIFT) is None


async def test_drift_of_a_window_is_announced_once_with_its_commit(monitor: LocalMonitor) -> None:
    name = await opened(monitor)
    drift = DriftAnnouncement(
        alert=name,
        model=MODEL,
        model_version=version_name(),
        version_id=await monitor.version_id(),
        kind=Kind.DATA_DRIFT,
        span=hour(3),
        data_quality_cause=False,
        features=[DELAY],
        summary="drift",
        reference_hash="sha256:ab",
    )
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            assert await records.announce(drift)
            raise ZeroDivisionError
    assert [] == await monitor.announced()
    others = [
        replace(drift, alert="window", span=hour(4)),
        replace(drift, alert="kind", kind=Kind.PREDICTION_DRIFT),
        replace(drift, alert="reference", reference_hash="sha256:cd"),
    ]
    async with monitor.store.transaction() as records:
        assert await records.announce(drift)
        assert not await records.announce(replace(drift, alert="again", summary="revised"))
    async with monitor.store.transaction() as records:
        assert not await records.announce(drift)
        assert [True] * 3 == [await records.announce(other) for other in others]
    assert [name, "window", "kind", "reference"] == await monitor.announced()


async def test_open_alerts_are_counted_by_model_and_kind(monitor: LocalMonitor) -> None:
    await opened(monitor, "a1")
    await opened(monitor, "a2", version=2, release=2)
    await opened(monitor, "a3", Kind.LABEL_DRIFT)
    await opened(monitor, "a4", Kind.CONCEPT_DRIFT)
    await acknowledge(monitor, "projects/p/alerts/a2", "ann")
    await resolve(monitor, "projects/p/alerts/a4", "seen")
    async with monitor.store.reading() as records:
        counts = await records.open_alerts()
    assert {(MODEL, "DATA_DRIFT"): 2, (MODEL, "LABEL_DRIFT"): 1} == counts
