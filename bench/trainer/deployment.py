"""A deployment of the trainer for one run of the benchmarks: a service process on real backends and Ray."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from flywheel_local import ports
from flywheel_local.backends import Backends
from flywheel_local.layout import LOCAL
from flywheel_local.platform import serves
from flywheel_local.process import Process
from flywheel_local.services import BUCKET, S3_CLIENTS

START_SECONDS = 60.0


class Deployment:
    """A context manager that runs PostgreSQL, S3, Ray and `flywheel-trainer serve`, without Kafka."""

    def __init__(self, *, running_jobs: int = 2) -> None:
        """`running_jobs` is the number of jobs that the trainer lets run at the same time."""
        self.folder = LOCAL / "bench" / f"trainer-{os.getpid()}"
        self._running_jobs = running_jobs
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.backends = self._stack.enter_context(
                Backends({"postgres", "s3", "ray"}, directory=self.folder / "data", log=self.folder / "log")
            )
            self.backends.postgres.create_databases(["flywheel_trainer", "flywheel_trainer_dbos"])
            self.backends.s3.create_bucket(BUCKET)
            self.address = f"127.0.0.1:{ports.free(['trainer'])['trainer']}"
            self.process = Process(
                "trainer",
                [sys.executable, "-m", "flywheel_trainer", "serve"],
                log=self.folder / "log" / "trainer.log",
                environment=self._environment(),
                directory=Path(__file__).parents[2],
            )
            self._stack.callback(self.process.stop)
            deadline = time.monotonic() + START_SECONDS
            while not serves(self.address):
                if not self.process.running or time.monotonic() > deadline:
                    raise RuntimeError(f"the trainer did not start: {self.process.log.read_text()[-2000:]}")
                time.sleep(0.1)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def code(self) -> dict[str, str]:
        """Variables with which processes run the code of this checkout, also where another is installed."""
        return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}

    def _environment(self) -> dict[str, str]:
        s3, ray = self.backends.s3, self.backends.ray
        fields = {
            "listen": self.address,
            "metrics_listen": "",
            "postgres_dsn": self.backends.postgres.dsn("flywheel_trainer"),
            "kafka_bootstrap": "127.0.0.1:1",
            "consume_drift": "false",
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": BUCKET,
            "feature_address": "127.0.0.1:1",
            "registry_address": "127.0.0.1:1",
            "ray_address": ray.jobs_url,
            "ray_auth_token": ray.token,
            "job_python": sys.executable,
            "job_environment": json.dumps(self.code),
            "max_running_jobs": str(self._running_jobs),
            "log_level": "ERROR",
            "log_rpcs": "false",
        }
        return {**{f"FLYWHEEL_TRAINER_{k.upper()}": v for k, v in fields.items()}, **S3_CLIENTS, **self.code}
