"""A deployment of the feature service for one run of the benchmarks: service processes on real backends."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import polars as pl

import flywheel as fw
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local import ports
from flywheel_local.backends import Backends
from flywheel_local.layout import LOCAL
from flywheel_local.platform import serves
from flywheel_local.process import Process
from flywheel_local.services import BUCKET, S3_CLIENTS

T = TypeVar("T")
START_SECONDS = 60.0


class Deployment:
    """A context manager that runs PostgreSQL, Redis, S3, Kafka and `flywheel-feature serve`."""

    def __init__(self) -> None:
        self.folder = LOCAL / "bench" / f"feature-{os.getpid()}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.backends = self._stack.enter_context(
                Backends(
                    {"postgres", "redis", "s3", "kafka"},
                    directory=self.folder / "data",
                    log=self.folder / "log",
                )
            )
            self.backends.postgres.create_databases(["flywheel_feature"])
            self.backends.s3.create_bucket(BUCKET)
            self.address = f"127.0.0.1:{ports.free(['feature'])['feature']}"
            self.start("feature", ["-m", "flywheel_feature", "serve"], self.settings, self.address)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def settings(self) -> dict[str, str]:
        backends = self.backends
        fields = {
            "listen": self.address,
            "metrics_listen": "",
            "postgres_dsn": backends.postgres.dsn("flywheel_feature"),
            "redis_url": backends.redis.url,
            "kafka_bootstrap": backends.kafka.bootstrap,
            "s3_endpoint": backends.s3.endpoint,
            "s3_access_key": backends.s3.access_key,
            "s3_secret_key": backends.s3.secret_key,
            "s3_bucket": BUCKET,
            # One partition, as one worker process is measured.
            "kafka_partitions": "1",
        }
        return {**{f"FLYWHEEL_FEATURE_{k.upper()}": v for k, v in fields.items()}, **S3_CLIENTS}

    def start(
        self, name: str, arguments: list[str], environment: dict[str, str] | None = None, address: str = ""
    ) -> Process:
        """Start a Python process; with an address, wait until its health status is SERVING."""
        process = Process(
            name,
            [sys.executable, *arguments],
            log=self.folder / "log" / f"{name}.log",
            environment=environment,
            directory=Path(__file__).parents[2],
        )
        self.keep(process)
        deadline = time.monotonic() + START_SECONDS
        while address and not serves(address):
            if not process.running or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {process.log}")
            time.sleep(0.1)
        return process

    def keep(self, process: Process) -> Process:
        """Stop the process at the end of the deployment."""
        self._stack.callback(process.stop)
        return process

    def start_worker(self) -> Process:
        """Start `flywheel-feature materialize`."""
        return self.start("materialize", ["-m", "flywheel_feature", "materialize"], self.settings)

    def call(self, work: Callable[[fw.Client], Awaitable[T]]) -> T:
        """Run `work` with an SDK client of the service."""

        async def run() -> T:
            async with fw.Client(feature=self.address, timeout=300.0) as client:
                return await work(client)

        return asyncio.run(run())

    def write_table(self, uri: str, frame: pl.DataFrame) -> None:
        """Write a Parquet file to S3."""
        s3 = self.backends.s3
        S3Tables(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=BUCKET
        ).write(uri, frame)

    def redis(self) -> Any:
        """A redis-py client of the online store."""
        import redis

        return redis.Redis.from_url(self.backends.redis.url)
