"""Settings of the feature service: `FLYWHEEL_FEATURE_<FIELD>`."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import (
    KafkaSettings,
    PostgresSettings,
    RedisSettings,
    S3Settings,
    ServiceSettings,
    reachable_address,
)


class FeatureSettings(ServiceSettings, PostgresSettings, RedisSettings, KafkaSettings, S3Settings):
    """Settings of the gRPC service."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_FEATURE_")

    listen: str = "127.0.0.1:7101"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7201"
    """host:port of the Prometheus /metrics page; empty for none."""
    topic_prefix: str = ""
    """Prefix of every topic and consumer group name, so that several platforms can share one Kafka."""
    registry_address: str = ""
    """host:port of the model registry, which lists the models that use a definition. Empty: no registry, so
    models do not prevent deletions."""
    job_concurrency: int = 2
    """Jobs that one process runs at a time."""
    stream_batch_records: int = 8000
    """Most records of a source that the stream worker applies in one batch. A record may hold many events; a
    batch has at most 8 MiB of them. Redis is written once per entity and batch. A killed worker repeats its
    batch."""
    stream_session_seconds: float = 10.0
    """Seconds without a renewal of its lease after which a stream worker's partitions go to the others."""
    stream_member: str = ""
    """Name of a stream worker that is kept over restarts and unique among the workers (the pod name of a
    StatefulSet). A restarted worker then gets its partitions back at once. Empty: other workers take them
    over when its lease has ended."""
    archive_flush_rows: int = 20_000
    """Events of a partition after which a segment of the archive is written."""
    archive_flush_seconds: float = 10.0
    """Longest time before an event is archived while further events arrive."""
    archive_idle_seconds: float = 1.0
    """Time without further events after which the events of a partition are archived."""
    materialize_rows_per_second: int = 0
    """Most rows per second that one materialization writes online; 0: no limit."""
    prediction_log_prefix: str = "predictions"
    """Key prefix of the monitor's prediction archive in the bucket; an erasure also cleans it."""

    join_memory_mebibytes: int = 2048
    """Memory limit of a training set's join; a larger join runs in partitions that spill to disk."""
    spill_directory: str = ""
    """Folder for the working files of joins in partitions, about the size of the inputs. Empty: the system's
    temporary folder. After a restart, a join continues if it finds its files there."""
    ray_address: str = ""
    """http(s)://host:port of a Ray cluster's Jobs API, for joins beyond one machine; empty: no cluster."""
    ray_auth_token: SecretStr = SecretStr("")
    """Token of the cluster; empty if it needs none."""
    ray_python: str = "python"
    """The interpreter on the cluster that has this service's code and Ray."""
    join_service_address: str = ""
    """host:port under which joins on Ray reach this service; empty: the host name of this machine if `listen`
    is an address of all interfaces, else `listen`."""
    join_url_seconds: int = 900
    """Seconds for which the object store accepts a request that this service signs for a join on Ray."""
    ray_join_rows: int = 200_000_000
    """Joins that read more rows than this run on Ray."""

    @property
    def address_of_joins(self) -> str:
        """host:port that joins on Ray dial."""
        return self.join_service_address or reachable_address(self.listen)


class MaterializeSettings(FeatureSettings):
    """Settings of the stream worker; they share the prefix of the service."""

    metrics_listen: str = "127.0.0.1:7206"
    """host:port of the Prometheus /metrics page; empty for none."""
