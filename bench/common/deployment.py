"""A deployment of one service for one run of the benchmarks: its process on real backends."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from flywheel_common.config import S3Settings
from flywheel_local import ports
from flywheel_local.backends import Backends
from flywheel_local.layout import LOCAL
from flywheel_local.platform import serves
from flywheel_local.process import Process
from flywheel_local.services import BUCKET, DATABASES, S3_CLIENTS
from tests.support.servers.inference_processes import Peer

START_SECONDS = 60.0
NOWHERE = "127.0.0.1:1"
"""Address of a dependency that the deployment does not have."""
QUIET = {"log_level": "ERROR", "log_rpcs": "false"}
"""Settings with which a service writes no line for each call."""


class Deployment:
    """A context manager that runs backends and `flywheel-SERVICE serve`."""

    def __init__(self, service: str, *backends: str, **settings: str) -> None:
        """`backends` are those besides PostgreSQL and S3; `settings` are further settings of the service."""
        self.service = service
        self.folder = LOCAL / "bench" / f"{service}-{os.getpid()}"
        self._wanted = {"postgres", "s3", *backends}
        self._further = settings
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.backends = self._stack.enter_context(
                Backends(self._wanted, directory=self.folder / "data", log=self.folder / "log")
            )
            self.backends.postgres.create_databases(
                [one for one in DATABASES if one.startswith(f"flywheel_{self.service}")]
            )
            self.backends.s3.create_bucket(BUCKET)
            self.dsn = self.backends.postgres.dsn(f"flywheel_{self.service}")
            self.address = f"127.0.0.1:{ports.free([self.service])[self.service]}"
            self.process = self.start_role("serve", self.service, self.address)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_role(self, role: str, name: str, address: str = "") -> Process:
        """Start `flywheel-SERVICE ROLE`."""
        return self.start(name, ["-m", f"flywheel_{self.service}", role], self._environment(), address)

    def start(
        self, name: str, arguments: list[str], environment: Mapping[str, str] | None = None, address: str = ""
    ) -> Process:
        """Start a Python process; with an address, wait until its health status is SERVING."""
        process = self.keep(
            Process(
                name,
                [sys.executable, *arguments],
                log=self.folder / "log" / f"{name}.log",
                environment={**(environment or {}), **self.code},
                directory=Path(__file__).parents[2],
            )
        )
        deadline = time.monotonic() + START_SECONDS
        while address and not serves(address):
            if not process.running or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {process.log.read_text()[-2000:]}")
            time.sleep(0.1)
        return process

    def keep(self, process: Process) -> Process:
        """Stop the process at the end of the deployment."""
        self._stack.callback(process.stop)
        return process

    @cached_property
    def feature(self) -> Peer:
        """A stand-in for the feature service, started at its first use."""
        peer = Peer("feature", self.folder)
        self._stack.callback(peer.process.kill)
        return peer

    @property
    def code(self) -> dict[str, str]:
        """Variables with which processes run the code of this checkout, also where another is installed."""
        return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}

    @property
    def resident_mib(self) -> float:
        """Resident memory of the service's process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

    @property
    def s3(self) -> S3Settings:
        """Settings of the object store."""
        s3 = self.backends.s3
        return S3Settings(
            s3_endpoint=s3.endpoint,
            s3_access_key=s3.access_key,
            s3_secret_key=s3.secret_key,
            s3_bucket=BUCKET,
        )

    def _environment(self) -> dict[str, str]:
        s3 = self.backends.s3
        fields = {
            "listen": self.address,
            "metrics_listen": "",
            "postgres_dsn": self.dsn,
            "kafka_bootstrap": self.backends.kafka.bootstrap if "kafka" in self._wanted else NOWHERE,
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": BUCKET,
        }
        if "redis" in self._wanted:
            fields["redis_url"] = self.backends.redis.url
        if self.service == "registry":
            fields["feature_address"] = self.feature.address
        if self.service == "trainer":
            fields |= {"consume_drift": "false", "feature_address": NOWHERE, "registry_address": NOWHERE}
        if "ray" in self._wanted:
            fields |= {
                "ray_address": self.backends.ray.jobs_url,
                "ray_auth_token": self.backends.ray.token,
                "job_python": sys.executable,
                "job_environment": json.dumps(self.code),
            }
        fields |= self._further
        return {
            **{f"FLYWHEEL_{self.service.upper()}_{k.upper()}": v for k, v in fields.items()},
            **S3_CLIENTS,
        }
