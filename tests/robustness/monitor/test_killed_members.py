"""Three members of the monitor count a stream while one after the other is killed with SIGKILL.

`make acceptance` kills 5 times, `make soak SUITE=monitor` 20 times (KILLS). Every kill and every restart
moves partitions between the members; batches of predictions and labels are sent twice now and then, as
gateways do after an unclear answer.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from sklearn import metrics

from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.producer import Producer
from flywheel_local.kafka import Kafka
from flywheel_local.s3 import S3
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from tests.support.builders.monitor import HOUR_US, MINUTE_US
from tests.support.eventually import eventually
from tests.support.peers.monitor import peers
from tests.support.ports import free_port
from tests.support.servers.monitor_process import MonitoredModel, MonitorProcess, process_environment

KILLS = int(os.environ.get("FLYWHEEL_SOAK_KILLS", "5"))
EVERY_SECONDS = 10.0
MEMBERS = 3
ROWS = 200
"""Predictions sent at once, several times a second."""
_PANES = """
SELECT start_us, sum(predictions)::bigint AS predictions FROM pane p JOIN variant t ON t.id = p.variant_id
JOIN model_version v ON v.id = t.model_version_id
WHERE p.segment = '' AND p.width_us = $1 AND v.name = $2 GROUP BY start_us
"""
_STORED = """
SELECT coalesce(sum(p.rows), 0) FROM prediction_pack p JOIN variant t ON t.id = p.variant_id
JOIN model_version v ON v.id = t.model_version_id WHERE v.name = $1
"""
_ARCHIVED = """
SELECT coalesce((SELECT sum(rows) FROM archive_segment WHERE model_id = m.id), 0)
    + coalesce((SELECT sum(rows) FROM archive_queue WHERE model_id = m.id AND segment_id IS NULL), 0)
FROM model m WHERE m.name = $1
"""


@pytest.fixture
async def members(
    kafka: Kafka, s3: S3, bucket: str, database: str, tmp_path: Path
) -> AsyncIterator[tuple[MonitoredModel, list[MonitorProcess]]]:
    """A model, and the processes that monitor it as members of one consumer group."""
    await ensure_topics(kafka.bootstrap, topics.STANDARD)
    project = f"p{uuid.uuid4().hex[:10]}"
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(peers())
        producer = await stack.enter_async_context(Producer(kafka.bootstrap, client_id="test-monitor"))
        processes = []
        for number in range(MEMBERS):
            address = f"127.0.0.1:{free_port()}"
            environment = process_environment(
                address=address,
                metrics_address=f"127.0.0.1:{free_port()}",
                dsn=database,
                kafka=kafka,
                s3=s3,
                bucket=bucket,
                peers=found,
                group=f"monitor-{project}",
            )
            process = MonitorProcess(environment, address, tmp_path / f"monitor-{number}.log")
            stack.push_async_callback(process.stop)
            await process.start()
            processes.append(process)
        model = MonitoredModel(processes[0], found, producer, kafka.bootstrap, bucket, s3, database, project)
        yield model, processes


@pytest.mark.timeout(1200)
async def test_counts_equal_the_truth_after_kills_and_rebalances(
    members: tuple[MonitoredModel, list[MonitorProcess]],
) -> None:
    model, processes = members
    model.register()
    sent: list[tuple[dict[str, Any], np.ndarray]] = []
    done = asyncio.Event()
    began = time.monotonic()

    async def send() -> None:
        rng = np.random.default_rng(11)
        while not done.is_set():
            rows = model.rows(ROWS, seed=len(sent), hours=6)
            labels = (rng.uniform(size=ROWS) < rows["scores"]).astype(float)
            for _ in range(2 if len(sent) % 10 == 3 else 1):
                await model.predict(**rows, chunk=(500, 25, 1)[len(sent) % 3])
                await model.label(rows["ids"], labels, rows["times"] + HOUR_US)
            sent.append((rows, labels))
            await asyncio.sleep(0.1)

    async def kill() -> None:
        try:
            for number in range(KILLS):
                await asyncio.sleep(EVERY_SECONDS)
                victim = processes[number % MEMBERS]
                await victim.kill()
                await victim.start()
            await asyncio.sleep(EVERY_SECONDS)
        finally:
            done.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        tasks.create_task(kill())
    total = ROWS * len(sent)
    assert total / (time.monotonic() - began) > 200, "a slower stream proves nothing"
    times = np.concatenate([rows["times"] for rows, _ in sent])
    scores = np.concatenate([rows["scores"] for rows, _ in sent])
    labels = np.concatenate([values for _, values in sent])
    status = await replace(model, monitor=processes[-1]).processed(total, total, within=180)
    assert 0 == status.orphan_outcomes
    repeats = sum(1 for i in range(len(sent)) if i % 10 == 3)

    async def all_read() -> bool:
        found = await model.status()
        assert (0, 2 * ROWS * repeats) == (found.lag_records, found.duplicates)
        return True

    await eventually(all_read, within=120)
    request = pb.GetPerformanceRequest(model_version=model.version_name())
    found = (await model.monitor.stub.GetPerformance(request)).performance
    assert (total, total) == (found.predictions, found.labelled)
    assert scores.mean() == pytest.approx(found.score_mean, abs=1e-8)
    assert metrics.log_loss(labels, scores) == pytest.approx(found.log_loss, abs=1e-8)
    conn = await asyncpg.connect(model.dsn)
    try:
        for width in (MINUTE_US, HOUR_US):
            truth = Counter((times // width * width).tolist())
            panes = {
                r["start_us"]: r["predictions"] for r in await conn.fetch(_PANES, width, model.version_name())
            }
            assert dict(truth) == panes
        assert total == await conn.fetchval(_STORED, model.version_name())
        assert total == await conn.fetchval(_ARCHIVED, model.model), "archived once"
    finally:
        await conn.close()
