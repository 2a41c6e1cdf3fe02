"""The service processes of the platform and their settings (see docs/architecture.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flywheel_local.backends import Backends

DATABASES = (
    "flywheel_feature",
    "flywheel_registry",
    "flywheel_trainer",
    "flywheel_trainer_dbos",
    "flywheel_monitor",
)
BUCKET = "flywheel"
NAMES = ("feature", "registry", "trainer", "inference", "monitor")


@dataclass(frozen=True)
class Service:
    """One process: its name, its role on the command line, and its ports."""

    name: str
    service: str
    role: str
    port: str | None
    metrics_port: str

    @property
    def command(self) -> list[str]:
        return [str(Path(sys.prefix) / "bin" / f"flywheel-{self.service}"), self.role]


SERVICES = (
    *(Service(name, name, "serve", name, f"{name}_metrics") for name in NAMES),
    Service("materialize", "feature", "materialize", None, "materialize_metrics"),
)


def settings(service: Service, backends: Backends, ports: Mapping[str, int], state: Path) -> dict[str, str]:
    """The environment of one process: ``FLYWHEEL_<SERVICE>_<FIELD>``, and the variables of libraries."""
    fields = {
        "metrics_listen": f"127.0.0.1:{ports[service.metrics_port]}",
        "redis_url": backends.redis.url,
        "cached_predictions_url": backends.redis.url,
        "kafka_bootstrap": backends.kafka.bootstrap,
        "s3_endpoint": backends.s3.endpoint,
        "s3_access_key": backends.s3.access_key,
        "s3_secret_key": backends.s3.secret_key,
        "s3_bucket": BUCKET,
        "triton_url": backends.triton.grpc_url,
        "ray_address": backends.ray.jobs_url,
        "ray_auth_token": backends.ray.token,
        "job_python": sys.executable,
        "state_dir": str(state / service.name),
        **{f"{peer}_address": f"127.0.0.1:{ports[peer]}" for peer in NAMES if peer != service.service},
    }
    if service.port is not None:
        fields["listen"] = f"127.0.0.1:{ports[service.port]}"
    if service.service != "inference":
        fields["postgres_dsn"] = backends.postgres.dsn(f"flywheel_{service.service}")
    if service.service == "trainer":
        fields["workflow_dsn"] = backends.postgres.dsn("flywheel_trainer_dbos")
        fields["job_uv"] = str(Path(sys.prefix).parent / "bootstrap" / "bin" / "uv")
        fields["job_environment"] = json.dumps({"FLYWHEEL_JOB_ENVIRONMENTS": str(state / "job-environments")})
    prefix = f"FLYWHEEL_{service.service.upper()}_"
    return {**{prefix + key.upper(): value for key, value in fields.items()}, **S3_CLIENTS}


S3_CLIENTS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    # Several processes share few cores: a thread pool per library would slow them down.
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "2",
    "MALLOC_ARENA_MAX": "2",
}


def client_environment(backends: Backends, ports: Mapping[str, int]) -> dict[str, str]:
    """The environment of clients on this machine: addresses of the services, and S3 for their own files."""
    addresses = {f"FLYWHEEL_{name.upper()}_ADDRESS": f"127.0.0.1:{ports[name]}" for name in NAMES}
    return {
        **addresses,
        "FLYWHEEL_S3_ENDPOINT": backends.s3.endpoint,
        "FLYWHEEL_S3_ACCESS_KEY": backends.s3.access_key,
        "FLYWHEEL_S3_SECRET_KEY": backends.s3.secret_key,
        "FLYWHEEL_S3_BUCKET": BUCKET,
        **{key: value for key, value in S3_CLIENTS.items() if key.startswith("AWS_")},
    }
