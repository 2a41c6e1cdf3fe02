"""Settings of the gateway: `FLYWHEEL_INFERENCE_<FIELD>`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import KafkaSettings, ServiceSettings


class InferenceSettings(ServiceSettings, KafkaSettings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_INFERENCE_")

    listen: str = "127.0.0.1:7104"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7204"
    """host:port of the Prometheus /metrics page; empty for none."""
    registry_address: str = "127.0.0.1:7102"
    """Registry that says what to serve."""
    feature_address: str = "127.0.0.1:7101"
    """Feature service that answers GetOnlineFeatures."""
    triton_url: str = "127.0.0.1:7307"
    """host:port of Triton's gRPC API."""
    redis_url: SecretStr = SecretStr("")
    """redis://[:password@]host:port/db with cached batch predictions; empty: the gateway has none."""
    state_dir: Path = Path(".local/inference")
    """Folder of the last desired state and the artifacts, from which the gateway boots while the registry is away."""
    gateway_id: str = ""
    """Stable id of this gateway; empty: made once and kept in state_dir."""
    project: str = ""
    """Serve only this project; empty: all."""
    triton_backend: Literal["auto", "onnxruntime", "python"] = "auto"
    """How Triton runs ONNX. auto: its native backend where it has one, else ONNX Runtime in its Python backend."""
    triton_instances: int = 1
    """Execution instances per model version."""

    max_in_flight: int = 1024
    """Predictions in flight beyond which new ones answer RESOURCE_EXHAUSTED OVERLOADED."""
    max_concurrent_rpcs: int = 2048
    """Unary calls of every kind in flight beyond which new ones answer RESOURCE_EXHAUSTED."""
    default_budget_seconds: float = 1.0
    """Budget of a prediction whose caller set no deadline, and the most that any gets."""
    answer_reserve_seconds: float = 0.005
    """Part of a prediction's budget kept for its fallback and answer."""
    batch_cap_seconds: float = 0.25
    """Most that feature lookup and model call of one batch take together. 0.01 keeps p99 near 20 ms where the
    machines are not shared; the default suits one machine that runs everything."""
    batch_max_rows: int = 256
    """Most requests in one batch; at most 1000, the feature service's limit."""
    batch_slots: int = 1
    """Batches of one release out at once while none stalls."""
    batch_max_slots: int = 8
    """Batches of one release out at once, stalled ones included."""
    batch_stall_seconds: float = 0.05
    """A batch out for longer no longer holds back the next."""
    breaker_failures: int = 5
    """Failed batches in a row after which a dependency is left alone."""
    breaker_open_seconds: float = 0.5
    """How long it is left alone before one batch tries it again."""

    shadow_max_rows: int = 2_000
    """Shadow copies waiting; beyond, they are dropped and counted."""
    shadow_timeout_seconds: float = 1.0
    """Most that one shadow batch may take."""
    log_flush_seconds: float = 0.02
    """How long prediction log rows wait for company."""
    log_flush_rows: int = 500
    """Rows that are sent without waiting."""
    log_max_rows: int = 50_000
    """Rows held in memory until Kafka has them; beyond, they are dropped and counted."""
    log_drain_seconds: float = 5.0
    """At the end of the process: how long to wait for Kafka to take the rows that are left."""
    outcome_timeout_seconds: float = 5.0
    """Most that RecordOutcome waits for Kafka."""
    heartbeat_seconds: float = 0.25
    """Pause between reports to the registry and between looks at Triton."""
    boot_wait_seconds: float = 3.0
    """How long a gateway without a state on disk waits for the registry's first word before it calls itself ready."""
