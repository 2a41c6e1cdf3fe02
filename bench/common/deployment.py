"""A deployment of one service for one run of the benchmarks: its process on real backends."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from flywheel_common.config import S3Settings
from flywheel_local import ports
from flywheel_local.backends import Backends
from flywheel_local.layout import LOCAL
from flywheel_local.platform import serves
from flywheel_local.process import Process
from flywheel_local.services import BUCKET, S3_CLIENTS
from tests.support.servers.inference_processes import Peer

START_SECONDS = 60.0


class Deployment:
    """A context manager that runs PostgreSQL, S3, a peer for features and one service, without Kafka."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.folder = LOCAL / "bench" / f"{service}-{os.getpid()}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.backends = self._stack.enter_context(
                Backends({"postgres", "s3"}, directory=self.folder / "data", log=self.folder / "log")
            )
            self.backends.postgres.create_databases([f"flywheel_{self.service}"])
            self.backends.s3.create_bucket(BUCKET)
            self.dsn = self.backends.postgres.dsn(f"flywheel_{self.service}")
            self.feature = Peer("feature", self.folder)
            self._stack.callback(self.feature.process.kill)
            self.address = f"127.0.0.1:{ports.free([self.service])[self.service]}"
            self.process = Process(
                self.service,
                [sys.executable, "-m", f"flywheel_{self.service}", "serve"],
                log=self.folder / "log" / f"{self.service}.log",
                environment=self._environment(),
                directory=Path(__file__).parents[2],
            )
            self._stack.callback(self.process.stop)
            deadline = time.monotonic() + START_SECONDS
            while not serves(self.address):
                if not self.process.running or time.monotonic() > deadline:
                    log = self.process.log.read_text()[-2000:]
                    raise RuntimeError(f"the {self.service} did not start: {log}")
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
            "kafka_bootstrap": "127.0.0.1:1",
            "feature_address": self.feature.address,
            "s3_endpoint": s3.endpoint,
            "s3_access_key": s3.access_key,
            "s3_secret_key": s3.secret_key,
            "s3_bucket": BUCKET,
            "log_level": "ERROR",
            "log_rpcs": "false",
        }
        if self.service == "trainer":
            fields["consume_drift"] = "false"
        # The code of this checkout, also where another one is installed.
        code = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {
            **{f"FLYWHEEL_{self.service.upper()}_{k.upper()}": v for k, v in fields.items()},
            **S3_CLIENTS,
            **code,
        }
