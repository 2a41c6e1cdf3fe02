"""The real monitor process against real backends, with stand-ins for the registry and the feature service."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flywheel_common.kafka import topics
from flywheel_common.kafka.producer import Producer
from flywheel_local.kafka import Kafka
from flywheel_local.s3 import S3
from tests.support.empty_topics import empty_topics
from tests.support.peers.monitor import peers
from tests.support.ports import free_port
from tests.support.servers.monitor_process import MonitoredModel, MonitorProcess, process_environment


@pytest.fixture
async def world(
    kafka: Kafka, s3: S3, bucket: str, database: str, tmp_path: Path
) -> AsyncIterator[MonitoredModel]:
    await empty_topics(kafka.bootstrap, topics.STANDARD)
    project = f"p{uuid.uuid4().hex[:10]}"
    address = f"127.0.0.1:{free_port()}"
    async with peers() as found, Producer(kafka.bootstrap, client_id="test-monitor") as producer:
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
        monitor = MonitorProcess(environment, address, tmp_path / "monitor.log")
        try:
            await monitor.start()
            yield MonitoredModel(monitor, found, producer, kafka.bootstrap, bucket, s3, database, project)
        finally:
            await monitor.stop()
            print(monitor.log.read_text()[-3000:])
