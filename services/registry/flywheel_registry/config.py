"""Settings of the registry: `FLYWHEEL_REGISTRY_<FIELD>`."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from flywheel_common.config import KafkaSettings, PostgresSettings, S3Settings, ServiceSettings


class RegistrySettings(ServiceSettings, PostgresSettings, KafkaSettings, S3Settings):
    """The settings of a registry process."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_REGISTRY_")

    listen: str = "127.0.0.1:7102"
    """host:port of the gRPC server."""
    metrics_listen: str = "127.0.0.1:7202"
    """host:port of the Prometheus /metrics page; empty for none."""
    s3_bucket: str = "flywheel"
    """Bucket of the artifacts."""
    s3_prefix: str = "registry/"
    """Prefix of the artifacts' keys."""
    monitor_address: str = "127.0.0.1:7105"
    """host:port of the monitor, which provides the evidence of rollouts."""
    monitor_timeout_seconds: float = 2.0
    """How long a tick waits for the monitor before the rollout holds."""
    monitor_longest_timeout_seconds: float = 60.0
    """How long it waits at most, for models whose comparisons did not end in `monitor_timeout_seconds`."""
    feature_address: str = "127.0.0.1:7101"
    """host:port of the feature service, which knows the features that the check of a version compares."""
    feature_timeout_seconds: float = 5.0
    """How long the check of a version waits for the feature service."""
    check_memory_bytes: int = 8 * 1024 * 1024 * 1024
    """Address space of the process that loads a version's model file to check it."""
    check_seconds: float = 60.0
    """CPU time and wall time of that process; a model that needs more fails its check."""
    checks_at_once: int = 2
    """How many of these processes run at once; further uploads wait."""
    tick_seconds: float = 0.3
    """Wall time between two ticks, which decide the active rollouts."""
    tick_lease_seconds: float = 3.0
    """How long a crashed replica keeps the others from ticking."""
    max_artifact_bytes: int = 4 * 1024 * 1024 * 1024
    """Largest artifact."""
    rollback_wait_seconds: float = 30.0
    """How long a rollback waits for gateways when its caller sets no deadline."""
    upload_buffers: int = 2
    """How many parts of uploads are in memory at once, about 12 MiB each. Uploads take turns part by part."""
    upload_part_seconds: float = 20.0
    """How long an upload may take to send a part of 5 MiB while others wait; a slower one fails."""
    stream_idle_seconds: float = 60.0
    """How long the caller of an upload, a download or WatchServing may neither send nor take data."""
    evidence_producers: tuple[str, ...] = ("trainer",)
    """Subjects of the tokens of the services whose measured values count as evidence (RecordEvaluation,
    PromoteModelVersion with `evidence`). They need the role service too. With auth_mode=open every caller."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts that webhooks may call; `*`: any. Webhooks are sent from inside the network, so name only hosts
    that may be told. None by default."""
