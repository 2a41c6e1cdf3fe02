"""Typed settings from environment variables `FLYWHEEL_<SERVICE>_<FIELD>`.

class FeatureSettings(ServiceSettings, PostgresSettings, RedisSettings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_FEATURE_")
    listen: str = "127.0.0.1:7101"
    metrics_listen: str = "127.0.0.1:7201"

settings = load(FeatureSettings)
"""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

EXIT_BAD_SETTINGS = 2


class Settings(BaseSettings):
    """Base class of settings: frozen; the docstring under a field documents it."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True
    )


class ServiceSettings(Settings):
    """Settings of every process."""

    listen: str = "127.0.0.1:7100"
    """host:port of the gRPC server; port 0 picks a free one."""
    metrics_listen: str = "127.0.0.1:7200"
    """host:port of the Prometheus /metrics page; empty for none."""
    drain_seconds: float = 1.0
    """After SIGTERM: how long to serve while NOT_SERVING, so that clients switch to other replicas."""
    grace_seconds: float = 10.0
    """After the drain: how long running calls may take to finish."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Largest message of a caller; gRPC's core refuses larger ones, before Python copies them."""
    max_concurrent_rpcs: int = 512
    """Limit of concurrent unary calls; above it calls fail with RESOURCE_EXHAUSTED. Health is exempt."""
    max_calls_per_connection: int = 1024
    """Maximum number of open calls of one connection, also of those that wait to be accepted; further calls
    wait at the client. It bounds the memory and the backlog of an overloaded process."""
    max_late_seconds: float = Field(0.0, ge=0)
    """Lateness of the event loop above which fewer unary calls are let in; the others are refused with
    RESOURCE_EXHAUSTED before they are parsed. 0: never (ADR 0076)."""
    max_concurrent_streams: int = 1024
    """Limit of concurrent streaming calls; above it calls fail with RESOURCE_EXHAUSTED."""
    default_deadline_seconds: float = 30.0
    """Budget of a unary call without a client deadline."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The lowest level that is logged."""
    log_rpcs: bool = True
    """One JSON line per RPC."""
    reflection: bool = True
    """Serve gRPC reflection (in jwt mode to authenticated callers only)."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for traces and metrics, e.g. http://127.0.0.1:4317; empty for none."""
    trace_ratio: float = 0.01
    """Share of calls without a sampled parent that are traced."""
    max_clock_skew_seconds: float = Field(300.0, ge=0)
    """Event times later than now + this many seconds are refused by RPCs and quarantined by consumers."""
    auth_mode: Literal["open", "jwt"] = "open"
    """open: every caller may do everything, on loopback only. jwt: bearer tokens, denied by default."""
    auth_open_anywhere: bool = False
    """Allow auth_mode=open on other addresses than loopback (inside a closed container network)."""
    jwt_issuer: str = ""
    """Required `iss` of tokens."""
    jwt_audience: str = ""
    """Required `aud` of tokens."""
    jwt_key_file: Path | None = None
    """PEM public key (or HMAC secret) that signs tokens."""
    jwt_jwks_url: str = ""
    """URL of the signing keys, instead of jwt_key_file."""
    jwt_algorithms: tuple[str, ...] = ("RS256", "ES256")
    """Accepted signature algorithms."""
    jwt_roles_claim: str = "roles"
    """Claim that lists the caller's roles."""
    service_token: SecretStr = SecretStr("")
    """Bearer token that this process sends to its peers."""
    tls_cert_file: Path | None = None
    """PEM certificate chain of the server; enables TLS together with tls_key_file."""
    tls_key_file: Path | None = None
    """PEM private key of the server."""
    tls_client_ca_file: Path | None = None
    """PEM root certificates for client certificates; enables mutual TLS."""

    @field_validator("listen", "metrics_listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value:
            split_address(value)
        return value


class PostgresSettings(Settings):
    """Settings of a service that owns a PostgreSQL database."""

    postgres_dsn: SecretStr
    """postgresql://user:password@host:port/database."""
    postgres_pool_size: int = 10
    """Maximum number of connections."""
    postgres_statement_timeout_seconds: float = 10.0
    """Statement timeout."""

    @property
    def dsn(self) -> str:
        """The DSN in the clear."""
        return self.postgres_dsn.get_secret_value()


class RedisSettings(Settings):
    """Settings of a service that uses Redis."""

    redis_url: SecretStr
    """redis://[:password@]host:port/db, or for the feature service
    redis+cluster://[:password@]host:port[,host:port…]."""

    @property
    def redis(self) -> str:
        """The URL in the clear."""
        return self.redis_url.get_secret_value()


class KafkaSettings(Settings):
    """Settings of a service that produces or consumes events."""

    kafka_bootstrap: str
    """host:port[,host:port…]."""
    kafka_partitions: int = 4
    """Partitions of the topics that this service creates."""


class S3Settings(Settings):
    """Settings of a service that stores objects in S3."""

    s3_endpoint: str
    """http(s)://host:port."""
    s3_access_key: SecretStr
    """Access key id."""
    s3_secret_key: SecretStr
    """Secret access key."""
    s3_bucket: str
    """Bucket of the objects of this service."""
    s3_region: str = "us-east-1"
    """Region name in signatures."""


S = TypeVar("S", bound=BaseSettings)


def load(settings: type[S], **overrides: Any) -> S:
    """The settings from the environment. `overrides` (command line options) that are not None win. If
    settings are missing or invalid, prints all problems and exits with status 2."""
    try:
        return settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        prefix = str(settings.model_config.get("env_prefix", ""))
        lines = [f"The settings of {settings.__name__} have {error.error_count()} problem(s):"]
        for problem in error.errors(include_url=False, include_input=False):
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            meaning = _meaning(settings, problem["loc"])
            lines.append(f"  {name}: {problem['msg']}{meaning}")
        sys.stderr.write("\n".join(lines) + "\n")
        raise SystemExit(EXIT_BAD_SETTINGS) from None


def _meaning(settings: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    field = settings.model_fields.get(str(location[0])) if location else None
    return f" ({field.description})" if field is not None and field.description else ""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not an address: expected host:port")
    return host.strip("[]"), int(port)


def reachable_address(listen: str) -> str:
    """host:port under which other machines reach a server that listens on `listen`: with the name of this
    machine if that is an address of all interfaces."""
    host, port = split_address(listen)
    everywhere = host in ("", "0.0.0.0", "::")  # noqa: S104 - the address is not bound here
    return f"{socket.gethostname()}:{port}" if everywhere else listen


_PASSWORD = re.compile(r"(//[^:/@\s]*):[^@\s]*@")
_PASSWORD_WORD = re.compile(r"\b(password|secret|token)=[^\s&]+", re.IGNORECASE)


def redact_dsn(dsn: str) -> str:
    """The DSN or URL with its password replaced by ***."""
    return _PASSWORD_WORD.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", dsn))
