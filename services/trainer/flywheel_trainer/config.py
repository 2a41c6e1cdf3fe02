"""Settings of the trainer: `FLYWHEEL_TRAINER_<FIELD>`."""

from __future__ import annotations

import sys

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import KafkaSettings, PostgresSettings, S3Settings, ServiceSettings


class TrainerSettings(ServiceSettings, PostgresSettings, KafkaSettings, S3Settings):
    """Everything that `flywheel-trainer serve` needs."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_TRAINER_")

    listen: str = "127.0.0.1:7103"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7203"
    """host:port of the Prometheus /metrics page; empty for none."""
    workflow_dsn: SecretStr = SecretStr("")
    """DBOS system database; empty: the service's own database name with `_dbos` appended, on the same server."""
    executor_id: str = "trainer-0"
    """Name of this replica in the workflow engine: stable over restarts, different for each replica."""
    pipeline_version: str = "pipeline-1"
    """Version of the pipeline's order of steps. Raised only when that order changes: runs in progress under another
    version are left to replicas that still have it."""
    feature_address: str = "127.0.0.1:7101"
    """host:port of the feature service."""
    registry_address: str = "127.0.0.1:7102"
    """host:port of the registry."""
    trainer_address: str = ""
    """host:port at which jobs reach this service for live metrics; empty: listen."""
    ray_address: str = "http://127.0.0.1:7311"
    """Jobs HTTP API of the Ray cluster."""
    ray_auth_token: SecretStr = SecretStr("")
    """Token of the Ray cluster."""
    job_python: str = sys.executable
    """Interpreter, on the cluster's machines, that has this package."""
    job_s3_endpoint: str = ""
    """Object store as the cluster's machines reach it; empty: s3_endpoint."""
    cpus_per_worker: float = 1.0
    """CPUs that each training worker reserves."""
    max_running_jobs: int = 2
    """Jobs on the cluster at once; more wait, higher priority first."""
    job_poll_seconds: float = 1.0
    """How often running jobs are looked at."""
    pipeline_poll_seconds: float = 1.0
    """How often a pipeline looks whether what it waits for has ended."""
    watch_poll_seconds: float = 0.3
    """How often Watch streams look for a change."""
    lease_check_seconds: float = 5.0
    """How often runs without a heartbeat are looked for."""
    consume_drift: bool = True
    """React to drift.detected."""
    drift_topic: str = "drift.detected"
    """Topic of drift events."""
    consumer_group: str = "flywheel-trainer"
    """Kafka consumer group for drift events."""

    @property
    def workflow_database(self) -> str:
        """DSN of the workflow engine's system database, in the clear."""
        given = self.workflow_dsn.get_secret_value()
        if given:
            return given
        address, mark, query = self.dsn.partition("?")
        return f"{address}_dbos{mark}{query}"
