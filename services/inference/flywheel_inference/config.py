"""Settings of the gateway: `FLYWHEEL_INFERENCE_<FIELD>`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from flywheel_common.config import KafkaSettings, ServiceSettings


class InferenceSettings(ServiceSettings, KafkaSettings):
    """Settings of one gateway process."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_INFERENCE_")

    listen: str = "127.0.0.1:7104"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7204"
    """host:port of the Prometheus /metrics page; empty for none."""
    registry_address: str = "127.0.0.1:7102"
    """host:port of the registry, which publishes the desired state."""
    feature_address: str = "127.0.0.1:7101"
    """host:port of the feature service."""
    triton_url: str = "127.0.0.1:7307"
    """host:port of Triton's gRPC API; several replicas separated by commas. Each has every model."""
    redis_url: SecretStr = SecretStr("")
    """redis://[:password@]host:port/db with cached batch predictions; empty: no cached predictions."""
    state_dir: Path = Path(".local/inference")
    """Folder with the last desired state and the artifacts, for a boot while the registry is unavailable."""
    gateway_id: str = ""
    """Stable id of this gateway; empty: generated once and stored in state_dir."""
    project: str = ""
    """Serve only this project; empty: all."""
    triton_backend: Literal["auto", "onnxruntime", "python"] = "auto"
    """How Triton runs ONNX. auto: its ONNX Runtime backend if it has one, else ONNX Runtime in its Python
    backend."""
    triton_instances: int = 1
    """Triton instances per model version."""

    max_in_flight: int = 1024
    """Maximum number of predictions in flight; more are refused with RESOURCE_EXHAUSTED OVERLOADED."""
    max_in_flight_per_model: int = 768
    """Maximum number of predictions of one model in flight, so that others keep places."""
    low_priority_share: float = 0.5
    """Share of the places in flight, in all and of a model, that requests of priority LOW may take."""
    normal_priority_share: float = 0.9
    """Share of the places in flight, in all and of a model, that requests of priority NORMAL may take."""
    max_in_flight_per_caller: int = 512
    """Maximum number of predictions of one authenticated caller in flight, so that others keep places."""
    bulk_in_flight: int = 256
    """Maximum number of requests of batches and streams in flight, out of max_in_flight."""
    max_batches: int = 16
    """Maximum number of BatchPredict calls in flight; more are refused with RESOURCE_EXHAUSTED OVERLOADED."""
    bulk_max_calls: int = 512
    """Maximum number of BatchPredict, StreamPredict, ModelInfer and ModelStreamInfer calls in flight, so that
    they leave calls to Predict; more are refused with RESOURCE_EXHAUSTED OVERLOADED."""
    bulk_max_bytes: int = 256 * 1024 * 1024
    """Maximum size of the requests of BatchPredict, StreamPredict and ModelInfer in flight, and of the
    answers that streams have not sent; more requests are refused with RESOURCE_EXHAUSTED OVERLOADED."""
    max_message_bytes: int = 8 * 1024 * 1024
    """Largest message of a caller; gRPC's core refuses larger ones. The event loop answers no other call
    while it copies a message (ADR 0103)."""
    max_response_bytes: int = 16 * 1024 * 1024
    """Largest answer of BatchPredict and ModelInfer; larger ones are refused."""
    bulk_caller_share: float = Field(0.5, gt=0, le=1)
    """Share of max_batches, bulk_max_calls and bulk_max_bytes that one authenticated caller may hold, so that
    others keep some."""
    stream_in_flight: int = 64
    """Maximum number of unanswered requests and unread answers of one stream; then no more are read."""
    max_concurrent_rpcs: int = 2048
    """Maximum number of unary calls of any kind in flight; more are refused with RESOURCE_EXHAUSTED."""
    max_late_seconds: float = Field(0.02, ge=0)
    """Lateness of the event loop above which fewer unary calls are let in; the others are refused with
    RESOURCE_EXHAUSTED before they are parsed. 0: never (ADR 0076)."""
    default_budget_seconds: float = 1.0
    """Time limit of a prediction whose caller set no deadline, and the upper limit for every prediction."""
    answer_reserve_seconds: float = 0.005
    """Part of a prediction's time limit that is reserved for its fallback and its answer."""
    batch_cap_seconds: float = 0.25
    """Time limit of feature lookup and model call of one batch together. 0.01 keeps p99 near 20 ms on
    dedicated machines; the default suits one machine that runs all services."""
    batch_max_rows: int = 256
    """Maximum number of requests in a batch; at most 1000, the limit of the feature service."""
    batch_slots: int = 1
    """Maximum number of concurrent batches of one release while none stalls."""
    batch_max_slots: int = 8
    """Maximum number of concurrent batches of one release, including stalled ones."""
    batch_stall_seconds: float = 0.05
    """A batch that runs for longer counts as stalled and frees its slot."""
    breaker_failures: int = 5
    """Failed batches in a row that open the circuit breaker of a dependency."""
    breaker_open_seconds: float = 0.5
    """Time until an open circuit breaker lets one batch probe the dependency."""

    shadow_max_rows: int = 2_000
    """Maximum number of waiting shadow copies for a release; more are dropped and counted."""
    shadow_max_bytes: int = 32 * 1024 * 1024
    """Maximum memory of the waiting shadow copies for a release; more are dropped and counted."""
    shadow_timeout_seconds: float = 1.0
    """Time limit of one shadow batch."""
    log_flush_seconds: float = 0.02
    """Maximum time that a prediction log row waits for others before it is sent."""
    log_flush_rows: int = 500
    """Number of prediction log rows that are sent without waiting."""
    log_max_rows: int = 50_000
    """Maximum number of prediction log rows in memory; more are dropped and counted."""
    log_max_bytes: int = 256 * 1024 * 1024
    """Maximum memory of the prediction log rows; more are dropped and counted."""
    log_drain_seconds: float = 5.0
    """Time limit for sending the remaining prediction log rows at shutdown."""
    outcome_timeout_seconds: float = 5.0
    """Maximum time that RecordOutcome waits for Kafka."""
    heartbeat_seconds: float = 0.25
    """Pause between reports to the registry, and between checks of the loaded models."""
    unload_seconds: float = 30.0
    """How long a model stays in Triton after its last use: other gateways on this Triton may still use it."""
    warm_seconds: float = 86_400.0
    """How long a release stays loaded after it served, so that a rollback to it needs no load. Only the last
    two releases of a model do."""
    hold_seconds: int = 30
    """With Redis: time after which a gateway that died no longer counts as a user of the models that it had
    loaded, and time after the first start in which no model is unloaded. Gateways on one Triton must have
    equal addresses in triton_url."""
    loads_at_once: int = 8
    """Maximum number of releases that are loaded at once; champions that were asked last come first."""

    @field_validator("triton_url")
    @classmethod
    def _check_addresses(cls, value: str) -> str:
        addresses = _addresses(value)
        if not all(addresses) or len(set(addresses)) != len(addresses):
            raise ValueError("must be one address, or several different ones separated by commas")
        return value

    @property
    def triton_addresses(self) -> list[str]:
        """The addresses of `triton_url`."""
        return _addresses(self.triton_url)


def _addresses(text: str) -> list[str]:
    return [address.strip() for address in text.split(",")]
