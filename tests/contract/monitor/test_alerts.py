"""One law for alerts, in memory, in PostgreSQL and, for what people do with them, through gRPC."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_monitor.alert import Announcement
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.windows import Span

HOUR_US = 3_600_000_000
DELAY = FeatureDrift(
    "v__delay", 0.5, 0.25, 0.125, 1e-9, None, None, 2e-9, -1.5, 0.0, 0.0, 0.01, Verdict.DRIFT, "PSI 0.250"
)
CARRIER = FeatureDrift(
    "v__carrier", 0.1, 0.05, None, None, 12.5, 0.5, 0.5, None, 0.25, 0.125, 0.5, Verdict.WARNING, "moved"
)


def hour(number: int) -> Span:
    return Span(number * HOUR_US, (number + 1) * HOUR_US)


async def opened(monitor: Any, alert: str = "a1", kind: Kind = Kind.DATA_DRIFT, **answered: Any) -> str:
    """The name of a new alert of a version that has answered."""
    batch = monitor.batch([f"for-{alert}"], **answered)
    await monitor.predicted(batch)
    async with monitor.store.transaction() as records:
        version = await records.version(batch.key.model_version)
        await records.lock(version.id)
        assert await records.unresolved(version.id, kind) is None
        return await records.open_alert(
            alert, version, kind, hour(3), [DELAY, CARRIER], "drift in 2 features"
        )


async def version_id(monitor: Any, number: int = 1) -> int:
    async with monitor.store.reading() as records:
        return (await records.version(monitor.version(number))).id


async def names(monitor: Any, filter_text: str = "", project: str = "p", size: int = 99) -> list[str]:
    """Ids of the alerts, page by page."""
    found, token = [], ""
    while True:
        page = await monitor.asks.alerts(project, filter_text, size, token)
        assert len(page.items) <= size
        found += [a.name.rsplit("/", 1)[1] for a in page.items]
        token = page.next_page_token
        if not token:
            return found


async def test_an_alert_reads_back_as_it_was_opened(monitor: Any) -> None:
    name = await opened(monitor)
    assert "projects/p/alerts/a1" == name
    found = await monitor.asks.alert(name)
    assert (monitor.model, monitor.version(), Kind.DATA_DRIFT) == (
        found.model,
        found.model_version,
        found.kind,
    )
    assert (AlertState.OPEN, hour(3), hour(3).end_us) == (found.state, found.span, found.last_window_end_us)
    assert ((DELAY, CARRIER), "drift in 2 features") == (found.features, found.reason)
    assert (None, "", "") == (found.resolved_at, found.acknowledged_by, found.resolved_reason)
    assert abs(datetime.now(UTC) - found.opened_at) < timedelta(minutes=5)
    assert [found] == list((await monitor.asks.alerts("p")).items)
    for absent in ("projects/p/alerts/none", "projects/q/alerts/a1"):
        with pytest.raises(NotFound) as unknown:
            await monitor.asks.alert(absent)
        assert "UNKNOWN_ALERT" == unknown.value.reason


async def test_alerts_are_listed_newest_first_page_by_page_and_as_asked(monitor: Any) -> None:
    await opened(monitor, "z1", Kind.DATA_DRIFT)
    await opened(monitor, "a2", Kind.CONCEPT_DRIFT)
    await opened(monitor, "m3", Kind.DATA_DRIFT, version=2, release=2)
    await opened(monitor, "b4", Kind.DATA_DRIFT, model="projects/p/models/other")
    await opened(monitor, "c5", Kind.DATA_DRIFT, model="projects/q/models/late")
    await monitor.asks.acknowledge("projects/p/alerts/a2", "ann")
    await monitor.asks.resolve("projects/p/alerts/m3", "seen")
    for size in (1, 2, 3, 99):
        assert ["b4", "m3", "a2", "z1"] == await names(monitor, size=size)
    assert ["c5"] == await names(monitor, project="q")
    assert ["m3", "a2", "z1"] == await names(monitor, f"model={monitor.model}", size=2)
    assert ["b4", "m3", "z1"] == await names(monitor, "kind=DATA_DRIFT", size=2)
    assert ["b4", "z1"] == await names(monitor, "state=OPEN")
    assert ["a2"] == await names(monitor, "state=ACKNOWLEDGED")
    assert ["m3"] == await names(monitor, "state=RESOLVED AND kind=DATA_DRIFT")
    assert [] == await names(monitor, "state=RESOLVED AND kind=LABEL_DRIFT")
    token = (await monitor.asks.alerts("p", "", 2)).next_page_token
    for project, filter_text in (("q", ""), ("p", "state=OPEN")):
        with pytest.raises(InvalidArgument) as foreign:
            await monitor.asks.alerts(project, filter_text, 2, token)
        assert "INVALID_PAGE_TOKEN" == foreign.value.reason
    for wrong in ("state=ODD", "kind=", "colour=red"):
        with pytest.raises(InvalidArgument) as unclear:
            await monitor.asks.alerts("p", wrong)
        assert "INVALID_FILTER" == unclear.value.reason


async def test_who_acknowledges_first_is_named_and_what_is_resolved_is_not_acknowledged(monitor: Any) -> None:
    name = await opened(monitor)
    before = await monitor.asks.alert(name)
    acknowledged = await monitor.asks.acknowledge(name, "ann")
    assert replace(before, state=AlertState.ACKNOWLEDGED, acknowledged_by="ann") == acknowledged
    assert acknowledged == await monitor.asks.acknowledge(name, "bob")
    resolved = await monitor.asks.resolve(name, "the sensor is back")
    assert (AlertState.RESOLVED, "ann", "the sensor is back") == (
        resolved.state,
        resolved.acknowledged_by,
        resolved.resolved_reason,
    )
    with pytest.raises(FailedPrecondition) as over:
        await monitor.asks.acknowledge(name, "eve")
    assert "ALERT_RESOLVED" == over.value.reason
    assert resolved == await monitor.asks.alert(name)
    with pytest.raises(NotFound) as unknown:
        await monitor.asks.acknowledge("projects/p/alerts/none", "ann")
    assert "UNKNOWN_ALERT" == unknown.value.reason


async def test_an_alert_is_resolved_once_for_the_first_reason(monitor: Any) -> None:
    name = await opened(monitor)
    resolved = await monitor.asks.resolve(name, "first")
    assert resolved.resolved_at >= resolved.opened_at
    assert resolved == await monitor.asks.resolve(name, "second") == await monitor.asks.alert(name)
    async with monitor.store.transaction() as records:
        await records.end_alert(await version_id(monitor), Kind.DATA_DRIFT, "third")
    assert resolved == await monitor.asks.alert(name)
    with pytest.raises(NotFound) as unknown:
        await monitor.asks.resolve("projects/p/alerts/none", "why")
    assert "UNKNOWN_ALERT" == unknown.value.reason


async def test_a_window_that_confirms_an_alert_replaces_its_evidence(monitor: Any) -> None:
    name = await opened(monitor)
    await monitor.asks.acknowledge(name, "ann")
    before = await monitor.asks.alert(name)
    version = await version_id(monitor)
    for number, reason in ((5, "newer"), (4, "revised")):
        async with monitor.store.transaction() as records:
            await records.confirm_alert(version, Kind.DATA_DRIFT, hour(number), [CARRIER], reason)
            await records.confirm_alert(version, Kind.LABEL_DRIFT, hour(9), [], "there is none")
    confirmed = replace(before, last_window_end_us=hour(5).end_us, features=(CARRIER,), reason="revised")
    assert confirmed == await monitor.asks.alert(name)


async def test_an_alert_ends_by_its_kind_and_the_next_one_is_another(monitor: Any) -> None:
    first, other = await opened(monitor, "a1"), await opened(monitor, "a2", Kind.LABEL_DRIFT)
    version = await version_id(monitor)
    async with monitor.store.transaction() as records:
        await records.end_alert(version, Kind.DATA_DRIFT, "3 windows without it")
    ended = await monitor.asks.alert(first)
    assert (AlertState.RESOLVED, "3 windows without it") == (ended.state, ended.resolved_reason)
    assert AlertState.OPEN == (await monitor.asks.alert(other)).state
    await opened(monitor, "a3")
    assert ["a3", "a2", "a1"] == await names(monitor)
    assert ended == await monitor.asks.alert(first)


async def test_alerts_of_a_version_that_serves_nobody_any_more_are_resolved(monitor: Any) -> None:
    start = monitor.start_us
    await opened(monitor, "a1", times=[start])
    await opened(monitor, "a2", Kind.DATA_QUALITY, times=[start + 50])
    await opened(monitor, "b1", version=2, release=2, times=[start])
    await monitor.predicted(monitor.batch(["s"], role=3, times=[start + 99]))
    await monitor.asks.acknowledge("projects/p/alerts/a2", "ann")
    version = await version_id(monitor)
    for since in (start + 50, start + 51):
        assert ["b1", "a1"] == await names(monitor, "state=OPEN")
        async with monitor.store.transaction() as records:
            await records.retire_alerts(version, since)
    assert ["a2", "a1"] == await names(monitor, "state=RESOLVED"), "an answer of a shadow serves nobody"
    assert (
        "the version no longer serves" == (await monitor.asks.alert("projects/p/alerts/a2")).resolved_reason
    )


async def test_an_alert_whose_transaction_is_undone_was_never_opened(monitor: Any) -> None:
    await opened(monitor)
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            version = await records.version(monitor.version())
            await records.open_alert("a9", version, Kind.LABEL_DRIFT, hour(3), [], "why")
            await records.end_alert(version.id, Kind.DATA_DRIFT, "why")
            raise ZeroDivisionError
    assert ["a1"] == await names(monitor, "state=OPEN")


@pytest.mark.without_grpc("only the watch asks for the alert that a window may confirm or end")
async def test_the_unresolved_alert_is_the_one_of_its_version_and_kind(monitor: Any) -> None:
    await opened(monitor, "a1", Kind.DATA_DRIFT)
    await opened(monitor, "b1", Kind.DATA_DRIFT, version=2, release=2)
    version = await version_id(monitor)
    await monitor.asks.acknowledge("projects/p/alerts/a1", "ann")
    async with monitor.store.transaction() as records:
        found = await records.unresolved(version, Kind.DATA_DRIFT)
        assert ("projects/p/alerts/a1", AlertState.ACKNOWLEDGED) == (found.name, found.state)
        assert await records.unresolved(version, Kind.LABEL_DRIFT) is None
        await records.end_alert(version, Kind.DATA_DRIFT, "over")
        assert await records.unresolved(version, Kind.DATA_DRIFT) is None


@pytest.mark.without_grpc("drift events leave by Kafka, through the outbox")
async def test_drift_of_a_window_goes_out_once_and_only_with_its_transaction(monitor: Any) -> None:
    name = await opened(monitor)
    drift = Announcement(
        name, monitor.model, monitor.version(), await version_id(monitor), Kind.DATA_DRIFT, hour(3), False, [DELAY],
        "drift", "sha256:ab",
    )  # fmt: skip
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


@pytest.mark.without_grpc("a gauge, not an RPC, shows how many are open")
async def test_open_alerts_are_counted_by_model_and_kind(monitor: Any) -> None:
    await opened(monitor, "a1")
    await opened(monitor, "a2", version=2, release=2)
    await opened(monitor, "a3", Kind.LABEL_DRIFT)
    await opened(monitor, "a4", Kind.CONCEPT_DRIFT)
    await monitor.asks.acknowledge("projects/p/alerts/a2", "ann")
    await monitor.asks.resolve("projects/p/alerts/a4", "seen")
    async with monitor.store.reading() as records:
        counts = await records.open_alerts()
    assert {(monitor.model, "DATA_DRIFT"): 2, (monitor.model, "LABEL_DRIFT"): 1} == counts
