"""A deployment of the feature service for one run of the benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import polars as pl

import flywheel as fw
from bench.common.deployment import Deployment
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.process import Process
from flywheel_local.services import BUCKET

T = TypeVar("T")


class FeatureDeployment(Deployment):
    """A context manager that runs PostgreSQL, Redis, S3, Kafka and `flywheel-feature serve`."""

    def __init__(self) -> None:
        # One partition, as one worker process is measured.
        super().__init__("feature", "redis", "kafka", kafka_partitions="1")

    def start_worker(self) -> Process:
        """Start `flywheel-feature materialize`."""
        return self.start_role("materialize", "materialize")

    def call(self, work: Callable[[fw.Client], Awaitable[T]]) -> T:
        """Run `work` with an SDK client of the service."""

        async def run() -> T:
            async with fw.Client(feature=self.address, timeout=300.0) as client:
                return await work(client)

        return asyncio.run(run())

    def write_table(self, uri: str, frame: pl.DataFrame) -> None:
        """Write a Parquet file to S3."""
        s3 = self.backends.s3
        S3Tables.connect(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=BUCKET
        ).write(uri, frame)

    def redis(self) -> Any:
        """A redis-py client of the online store."""
        import redis

        return redis.Redis.from_url(self.backends.redis.url)
