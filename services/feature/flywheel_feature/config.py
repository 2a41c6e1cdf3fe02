"""Settings of the feature service: `FLYWHEEL_FEATURE_<FIELD>`."""

from __future__ import annotations

from pydantic import SecretStr
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
    registry_address: str = ""
    """host:port of the model registry, asked which models read what; empty: there is none, so nothing keeps definitions from deletion."""
    job_concurrency: int = 2
    """Jobs that one process carries out at a time."""
    stream_batch_records: int = 8000
    """Most records of a source that the stream worker applies at once, which it does only when it is behind; a record may hold many
    events, 8 MiB of them in all. Redis is written once per entity and batch; a worker that is killed does its batch again."""
    stream_session_seconds: float = 10.0
    """A stream worker that Kafka has not heard of for so long loses its partitions to others."""
    stream_member: str = ""
    """Name that a stream worker keeps over restarts, unique among the members (a StatefulSet's pod name): it then has its
    partitions again at once. Empty: the others take them over when the session has ended."""
    archive_flush_rows: int = 20_000
    """Events of a partition that make a segment of the archive at once."""
    archive_flush_seconds: float = 10.0
    """Oldest that an event grows before it is archived while others keep coming."""
    archive_idle_seconds: float = 1.0
    """An event is archived when nothing followed it for so long."""
    materialize_rows_per_second: int = 0
    """Most rows a second that one materialization writes online; 0: no limit."""
    prediction_log_prefix: str = "predictions"
    """Key prefix of the monitor's archive of predictions in the bucket, which an erasure cleans."""

    join_memory_mebibytes: int = 2048
    """What a training set's join may take of memory; a larger one is computed in partitions that spill to disk."""
    spill_directory: str = ""
    """Where joins in partitions keep their working files, about the size of the inputs; empty: the system's temporary folder.
    A join goes on after a restart where it finds them again."""
    ray_address: str = ""
    """http(s)://host:port of a Ray cluster's Jobs API, for joins beyond one machine; empty: there is none."""
    ray_auth_token: SecretStr = SecretStr("")
    """Token of the cluster; empty: it asks for none."""
    ray_python: str = "python"
    """The interpreter on the cluster that has this service's code and Ray."""
    ray_join_rows: int = 200_000_000
    """Joins that read more rows go to Ray."""


class MaterializeSettings(FeatureSettings):
    metrics_listen: str = "127.0.0.1:7206"
    """host:port of the Prometheus /metrics page; empty for none."""
