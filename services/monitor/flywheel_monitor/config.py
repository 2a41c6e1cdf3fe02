"""Settings of the monitor: `FLYWHEEL_MONITOR_<FIELD>`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import KafkaSettings, PostgresSettings, S3Settings, ServiceSettings


class MonitorSettings(ServiceSettings, PostgresSettings, KafkaSettings, S3Settings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_MONITOR_")

    listen: str = "127.0.0.1:7105"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7205"
    """host:port of the Prometheus /metrics page; empty for none."""
    registry_address: str = "127.0.0.1:7102"
    """host:port of the registry, which knows the training set of a version."""
    feature_address: str = "127.0.0.1:7101"
    """host:port of the feature service, which has the profile of the training set."""
    consumer_group: str = "flywheel-monitor"
    """Kafka consumer group; its positions are stored in PostgreSQL."""
    pane_seconds: int = Field(60, ge=1, le=86_400)
    """Width of a pane: the smallest slice of event time. Must not change after counts exist."""
    out_of_order_seconds: float = Field(0.0, ge=0)
    """Event time that a window stays open after the watermark has passed its end."""
    watch_poll_seconds: float = Field(0.25, gt=0)
    """Pause between passes that judge the windows that are due."""
    keep_days: float = Field(400.0, gt=0)
    """Time since their arrival for which single predictions and labels are kept; counts, reports and the
    archive stay."""
    keep_minutes_days: float = Field(60.0, ge=8)
    """Event time for which panes narrower than an hour are kept; hours and days stay. Must exceed window and
    lateness of every model."""
    batch_records: int = Field(20_000, ge=1)
    """Most records of one poll. Under a backlog the bytes that Kafka sends at once (8 MiB of a partition) are
    the tighter bound of a transaction."""
    linger_seconds: float = Field(0.05, ge=0)
    """Pause after a poll that did not return `batch_records`: events that arrive meanwhile share a
    transaction."""
    archive_prefix: str = "predictions"
    """Key prefix of the prediction archive in s3_bucket."""
    archive_rows: int = Field(50_000, ge=1)
    """Rows after which an archive segment is cut."""
    archive_idle_seconds: float = Field(1.0, ge=0)
    """Wall time without new predictions after which the waiting ones are archived."""
    archive_age_seconds: float = Field(30.0, gt=0)
    """Wall time after which the oldest waiting prediction is archived."""
    lease_ttl_seconds: float = Field(10.0, gt=0)
    """Time after which another replica takes over the work of a crashed one."""
