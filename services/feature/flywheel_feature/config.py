"""Settings of the feature service: `FLYWHEEL_FEATURE_<FIELD>`."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from flywheel_common.config import KafkaSettings, PostgresSettings, RedisSettings, S3Settings, ServiceSettings


class FeatureSettings(ServiceSettings, PostgresSettings, RedisSettings, KafkaSettings, S3Settings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_FEATURE_")

    listen: str = "127.0.0.1:7101"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7201"
    """host:port of the Prometheus /metrics page; empty for none."""
    topic_prefix: str = ""
    """Put before every topic and consumer group name, so that several platforms can share one Kafka."""
    job_concurrency: int = 2
    """Jobs that one process carries out at a time."""
    stream_batch_records: int = 2000
    """Most records of a source that the stream worker applies at once; a record may hold many events, 8 MiB of them in all."""
    stream_session_seconds: float = 10.0
    """A stream worker that Kafka has not heard of for so long loses its partitions to others."""
    archive_flush_rows: int = 20_000
    """Events of a partition that make a segment of the archive at once."""
    archive_flush_seconds: float = 10.0
    """Oldest that an event grows before it is archived while others keep coming."""
    archive_idle_seconds: float = 1.0
    """An event is archived when nothing followed it for so long."""


class MaterializeSettings(FeatureSettings):
    metrics_listen: str = "127.0.0.1:7206"
    """host:port of the Prometheus /metrics page; empty for none."""
