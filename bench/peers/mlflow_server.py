"""An MLflow server on the PostgreSQL and the object store of this machine.

MLflow is installed in its own environment by `make bench-peers` and `make acceptance`. The server runs as its
documentation starts it: uvicorn with the default of four workers, artifacts proxied to S3. Only telemetry to
its makers and the security checks' log are off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import Request, urlopen

from bench.common.peer import output_of
from bench.h2load import ToolMissing
from flywheel_local import ports
from flywheel_local.layout import LOCAL
from flywheel_local.postgres import Postgres
from flywheel_local.process import Process
from flywheel_local.s3 import S3

PEER = LOCAL / "peers-mlflow" / "bin"
DATABASE, BUCKET = "mlflow", "mlflow"
START_SECONDS = 240.0
HEALTH_SECONDS = 120
SCRIPT = Path(__file__).with_name("mlflow_client.py")
ENVIRONMENT = {
    "PATH": f"{PEER}:/usr/bin:/bin",
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def require() -> None:
    """Raises ToolMissing."""
    if not (PEER / "mlflow").exists():
        raise ToolMissing(f"MLflow is not installed: make bench-peers installs it into {PEER.parent}")


class MlflowServer:
    """A context manager: creates the database and the bucket, and runs `mlflow server`, with its default
    number of workers or with `workers`."""

    def __init__(self, postgres: Postgres, s3: S3, folder: Path, *, workers: int | None = None) -> None:
        require()
        self._workers = workers
        self._postgres, self._s3, self._folder = postgres, s3, folder
        self.address = f"127.0.0.1:{ports.free(['mlflow'])['mlflow']}"
        self.url = f"http://{self.address}"

    @property
    def dsn(self) -> str:
        """The DSN of its database."""
        return self._postgres.dsn(DATABASE)

    def __enter__(self) -> Self:
        s3 = self._s3
        self._postgres.create_databases([DATABASE])
        s3.create_bucket(BUCKET)
        host, _, port = self.address.partition(":")
        options = {
            "backend-store-uri": self.dsn.replace("postgresql:", "postgresql+psycopg2:"),
            "artifacts-destination": f"s3://{BUCKET}",
            "host": host,
            "port": port,
            # On a busy machine the supervisor would end workers that do not answer it within 5 s.
            "uvicorn-opts": f"--timeout-worker-healthcheck={HEALTH_SECONDS}",
            **({} if self._workers is None else {"workers": str(self._workers)}),
        }
        self._process = Process(
            "mlflow",
            [PEER / "mlflow", "server", *(f"--{key}={value}" for key, value in options.items())],
            log=self._folder / "log" / "mlflow.log",
            environment={
                **ENVIRONMENT,
                "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
                "AWS_ACCESS_KEY_ID": s3.access_key,
                "AWS_SECRET_ACCESS_KEY": s3.secret_key,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            directory=self._folder,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self._process.running or time.monotonic() > deadline:
                self._process.stop()
                raise RuntimeError(f"MLflow did not start: {self._process.log.read_text()[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop()

    def client(self, command: str, *, seconds: float = 280, **arguments: object) -> Any:
        """What a command of mlflow_client.py answers. Raises RuntimeError."""
        return run_client(command, {"url": self.url, **arguments}, seconds)

    def post(self, path: str, message: Mapping[str, object]) -> dict[str, Any]:
        """The answer of a call of MLflow's REST API."""
        headers = {"Content-Type": "application/json"}
        request = Request(f"{self.url}/api/2.0/mlflow/{path}", json.dumps(message).encode(), headers)
        with urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def run_client(command: str, arguments: Mapping[str, object], seconds: float) -> Any:
    """Runs a command of mlflow_client.py in the environment of MLflow. Raises RuntimeError."""
    program = [PEER / "python", SCRIPT, command, json.dumps(dict(arguments))]
    return json.loads(output_of(f"MLflow, {command}", program, seconds, ENVIRONMENT).splitlines()[-1])
