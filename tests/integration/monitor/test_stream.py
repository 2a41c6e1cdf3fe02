"""From Kafka to the API: counting, labels, duplicates, orphans, poison events, crashes."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import numpy as np
import pytest
from sklearn import metrics

from flywheel_common.kafka import topics
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from tests.support.builders.monitor import HOUR_US, START_US
from tests.support.eventually import eventually
from tests.support.servers.monitor_process import MonitoredModel


async def performance(world: MonitoredModel, version: int = 1, **fields: Any) -> pb.Performance:
    request = pb.GetPerformanceRequest(model_version=world.version_name(version), **fields)
    return (await world.monitor.stub.GetPerformance(request)).performance


async def test_quality_equals_scikit_learn(world: MonitoredModel) -> None:
    world.register()
    r = world.rows(3000)
    rng = np.random.default_rng(5)
    labels = (rng.uniform(size=3000) < r["scores"]).astype(float)
    await world.predict(**r)
    await world.label(r["ids"][:2000], labels[:2000], r["times"][:2000] + HOUR_US)
    status = await world.processed(3000, 2000)
    assert (status.orphan_outcomes, status.duplicates) == (0, 0)
    found = await performance(world)
    s, y = r["scores"][:2000], labels[:2000]
    assert found.predictions == 3000
    assert found.labelled == 2000
    assert found.auc == pytest.approx(metrics.roc_auc_score(y, s), abs=1e-9)
    assert found.log_loss == pytest.approx(metrics.log_loss(y, s), abs=1e-8)
    assert found.brier == pytest.approx(metrics.brier_score_loss(y, s), abs=1e-8)
    assert found.label_mean == pytest.approx(y.mean(), abs=1e-9)
    assert found.score_mean == pytest.approx(r["scores"].mean(), abs=1e-8)
    assert found.first_event.ToMicroseconds() == r["times"][0]
    assert found.last_event.ToMicroseconds() == r["times"][-1]
    assert 3.0 <= found.latency_p99_ms <= 3.3


async def test_repeated_predictions_and_labels_count_once(world: MonitoredModel) -> None:
    world.register()
    r = world.rows(400)
    labels = np.ones(400)
    for _ in range(3):
        await world.predict(**r)
        await world.label(r["ids"], labels, r["times"])
    await world.processed(400, 400)

    async def all_read() -> bool:
        return (await world.status()).lag_records == 0

    await eventually(all_read, within=30)
    status = await world.status()
    assert (status.predictions, status.outcomes, status.duplicates) == (400, 400, 1600)
    found = await performance(world)
    assert (found.predictions, found.labelled) == (400, 400)


async def test_a_label_waits_for_its_prediction(world: MonitoredModel) -> None:
    world.register()
    r = world.rows(300)
    labels = np.tile([0.0, 1.0], 150)
    await world.label(r["ids"], labels, r["times"])
    status = await world.processed(0, 300)
    assert status.orphan_outcomes == 300
    await world.predict(**r)
    status = await world.processed(300, 300)
    assert status.orphan_outcomes == 0
    found = await performance(world)
    assert found.labelled == 300
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, r["scores"]), abs=1e-9)


async def test_a_newer_label_replaces_an_older_one_in_any_order(world: MonitoredModel) -> None:
    world.register()
    r = world.rows(200)
    await world.predict(**r)
    wrong, right = np.zeros(200), np.tile([1.0, 0.0], 100)
    await world.label(
        r["ids"][:100], wrong[:100], r["times"][:100], outcome_ids=[f"a{i}" for i in r["ids"][:100]]
    )
    await world.label(r["ids"], right, r["times"] + 1, outcome_ids=[f"b{i}" for i in r["ids"]])
    await world.label(
        r["ids"][100:], wrong[100:], r["times"][100:], outcome_ids=[f"a{i}" for i in r["ids"][100:]]
    )
    await world.processed(200, 200)

    async def settled() -> bool:
        found = await performance(world)
        assert found.labelled == 200
        assert found.log_loss == pytest.approx(metrics.log_loss(right, r["scores"]), abs=1e-8)
        return True

    await eventually(settled, within=30)


async def test_poison_events_go_to_the_dead_letters_others_are_counted(world: MonitoredModel) -> None:
    world.register()
    r = world.rows(500)
    await world.predict(**r)
    await world.producer.send(topics.PREDICTION_LOGGED, b"\xff\xfenot an event", partition=0)
    await world.producer.send(topics.OUTCOME_RECORDED, b"\x00", partition=1)
    more = world.rows(500, seed=1)
    await world.predict(**more)
    await world.processed(1000)

    async def parked() -> bool:
        return (await world.status()).dead_letters >= 2

    await eventually(parked, within=30)


async def test_counts_are_exact_after_repeated_kills(world: MonitoredModel) -> None:
    world.register()
    total, done = 12_000, asyncio.Event()
    r = world.rows(total, hours=6)
    labels = (np.random.default_rng(7).uniform(size=total) < 0.4).astype(float)

    async def send() -> None:
        for start in range(0, total, 400):
            part = slice(start, start + 400)
            await world.predict(
                r["ids"][part], r["times"][part], r["scores"][part], r["delays"][part], chunk=50
            )
            await world.label(r["ids"][part], labels[part], r["times"][part])
            if start % 2000 == 0:
                await world.predict(
                    r["ids"][part], r["times"][part], r["scores"][part], r["delays"][part], chunk=50
                )
            await asyncio.sleep(0.15)
        done.set()

    async def kill_repeatedly() -> None:
        while not done.is_set():
            await asyncio.sleep(1.0)
            await world.monitor.kill()
            await world.monitor.start()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        tasks.create_task(kill_repeatedly())
    status = await world.processed(total, total, within=60)
    assert status.orphan_outcomes == 0
    found = await performance(world)
    assert (found.predictions, found.labelled) == (total, total)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, r["scores"]), abs=2e-3)
    assert found.score_mean == pytest.approx(r["scores"].mean(), abs=1e-8)
    conn = await asyncpg.connect(world.dsn)
    try:
        # The topics also contain events of other tests' models.
        of_version = "(SELECT id FROM model_version WHERE name = $1)"
        panes = await conn.fetchval(
            "SELECT sum(predictions) FROM pane p JOIN variant t ON t.id = p.variant_id "
            f"WHERE segment = '' AND width_us = 60000000 AND role <> 3 AND model_version_id = {of_version}",
            world.version_name(),
        )
        rows = await conn.fetchval(
            "SELECT coalesce(sum(p.rows), 0) FROM prediction_pack p JOIN variant t ON t.id = p.variant_id "
            f"WHERE model_version_id = {of_version}",
            world.version_name(),
        )
    finally:
        await conn.close()
    assert (panes, rows) == (total, total)


async def test_predictions_wait_while_the_registry_is_down(world: MonitoredModel) -> None:
    world.register()
    world.peers.registry.down = True
    r = world.rows(200)
    await world.predict(**r)

    async def called() -> bool:
        return world.peers.registry.calls >= 1

    await eventually(called, within=20)
    assert (await world.status()).predictions == 0
    world.peers.registry.down = False
    await world.processed(200)
    request = pb.GetDriftReportRequest(name=world.version_name())
    request.start_time.FromMicroseconds(START_US)
    request.end_time.FromMicroseconds(START_US + 24 * HOUR_US)
    report = (await world.monitor.stub.GetDriftReport(request)).report
    assert {f.feature for f in report.features} == {"flights__delay", "flights__carrier"}


async def test_segments_are_counted_separately(world: MonitoredModel) -> None:
    world.register()
    r = world.rows(400)
    await world.predict(**r, segments=["origin=JFK"] * 100 + ["origin=EWR"] * 300)
    await world.processed(400)
    assert (await performance(world)).predictions == 400
    assert (await performance(world, segment="origin=JFK")).predictions == 100
    assert (await performance(world, segment="origin=EWR")).predictions == 300
