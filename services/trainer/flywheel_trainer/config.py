"""Settings of the trainer: `FLYWHEEL_TRAINER_<FIELD>`."""

from __future__ import annotations

import sys

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import (
    KafkaSettings,
    PostgresSettings,
    S3Settings,
    ServiceSettings,
    reachable_address,
)
from flywheel_trainer.jobs.resources import Quota


class ProjectQuota(BaseModel):
    """Limits of one project; None: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: float | None = None
    gpus: float | None = None


class TrainerSettings(ServiceSettings, PostgresSettings, KafkaSettings, S3Settings):
    """Settings of `flywheel-trainer serve`."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_TRAINER_")

    listen: str = "127.0.0.1:7103"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7203"
    """host:port of the Prometheus /metrics page; empty for none."""
    workflow_dsn: SecretStr = SecretStr("")
    """DSN of the DBOS system database; empty: the service's own database name with `_dbos` appended."""
    pipeline_version: str = "graph-1"
    """Version of the code of pipeline workflows.

    Change it only when that code changes. Replicas finish the runs that they started; when they have ended,
    replicas of another version continue what they left from the records of the steps.
    """
    feature_address: str = "127.0.0.1:7101"
    """host:port of the feature service."""
    registry_address: str = "127.0.0.1:7102"
    """host:port of the registry."""
    trainer_address: str = ""
    """host:port under which jobs reach this service for live metrics; empty: the host name of this machine if
    `listen` is an address of all interfaces, else `listen`."""
    ray_address: str = "http://127.0.0.1:7311"
    """Jobs HTTP API of the Ray cluster."""
    ray_auth_token: SecretStr = SecretStr("")
    """Token of the Ray cluster."""
    job_python: str = sys.executable
    """Python interpreter on the machines of the cluster, with this package installed."""
    job_uv: str = "uv"
    """uv executable on the machines of the cluster, for the environments of jobs with requirements of their
    own."""
    job_s3_endpoint: str = ""
    """URL under which the machines of the cluster reach the object store; empty: s3_endpoint."""
    job_url_seconds: int = 900
    """Seconds for which the object store accepts a request that this service signs for a job; an attempt that
    is active gets new ones."""
    cpus_per_worker: float = 1.0
    """CPUs that each training worker reserves."""
    job_environment: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of jobs, as a JSON object."""
    max_running_jobs: int = 2
    """Largest number of jobs on the cluster; further jobs wait, higher priority first."""
    project_quotas: dict[str, ProjectQuota] = Field(default_factory=dict)
    """The CPUs and GPUs that the jobs of a project may use at one time, as a JSON object such as
    `{"fraud": {"cpus": 16, "gpus": 2}}`; `*` is for projects that are not named. Absent: no limit."""
    job_poll_seconds: float = 1.0
    """Seconds between two checks of the active jobs."""
    pipeline_poll_seconds: float = 1.0
    """Seconds between two checks of the job that a pipeline waits for."""
    watch_poll_seconds: float = 0.3
    """Seconds between two checks for changes in a Watch stream."""
    lease_check_seconds: float = 5.0
    """Seconds between two checks for runs whose lease has expired."""
    schedule_poll_seconds: float = 5.0
    """Seconds between two checks for times of retraining policies that have come."""
    consume_drift: bool = True
    """Whether to consume drift.detected and retrain models."""
    cached_predictions_url: SecretStr = SecretStr("")
    """redis://[:password@]host:port/db under which the machines of the cluster reach the Redis with the
    gateways' cached predictions, which SCORE jobs fill; empty: they cannot."""
    drift_topic: str = "drift.detected"
    """Topic of drift events."""
    consumer_group: str = "flywheel-trainer"
    """Kafka consumer group for drift events."""

    @property
    def metrics_address(self) -> str:
        """host:port that jobs dial."""
        if self.trainer_address:
            return self.trainer_address
        return reachable_address(self.listen)

    @property
    def endpoint_of_jobs(self) -> str:
        """URL of the object store for jobs."""
        return self.job_s3_endpoint or self.s3_endpoint

    def quota_of(self, project: str) -> Quota:
        """The quota of a project."""
        found = self.project_quotas.get(project) or self.project_quotas.get("*") or ProjectQuota()
        return Quota(found.cpus, found.gpus)

    @property
    def workflow_database(self) -> str:
        """DSN of the workflow engine's system database, including the password."""
        given = self.workflow_dsn.get_secret_value()
        if given:
            return given
        address, mark, query = self.dsn.partition("?")
        return f"{address}_dbos{mark}{query}"
