"""Port numbers: configurable ones for the platform, free ones for tests."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Mapping

from flywheel_local.failure import LocalError

DEFAULT_BASE = 7000

# Offsets from the base: x1xx gRPC, x2xx metrics, x3xx backends.
OFFSETS: Mapping[str, int] = {
    "feature": 101,
    "registry": 102,
    "trainer": 103,
    "inference": 104,
    "monitor": 105,
    "feature_metrics": 201,
    "registry_metrics": 202,
    "trainer_metrics": 203,
    "inference_metrics": 204,
    "monitor_metrics": 205,
    "materialize_metrics": 206,
    "postgres": 301,
    "redis": 302,
    "s3": 303,
    "kafka": 304,
    "kafka_controller": 305,
    "triton_http": 306,
    "triton_grpc": 307,
    "triton_metrics": 308,
    "ray": 310,
    "ray_dashboard": 311,
    "s3_grpc": 321,
    "s3_master": 322,
    "s3_master_grpc": 323,
    "s3_volume": 324,
    "s3_volume_grpc": 325,
    "s3_filer": 326,
    "s3_filer_grpc": 327,
}

FREE = range(15_000, 32_000)
"""Where `free` looks: below the ephemeral range, so that no client socket takes a port meanwhile."""


def setting_for(name: str) -> str:
    """The environment variable of one port."""
    return f"FLYWHEEL_PORT_{name.upper()}"


def configured(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """All ports of the platform: ``FLYWHEEL_PORT_<NAME>``, or ``PORT_BASE`` + offset."""
    base = _number(environment, "PORT_BASE", DEFAULT_BASE)
    ports = {name: _number(environment, setting_for(name), base + offset) for name, offset in OFFSETS.items()}
    seen: dict[int, str] = {}
    for name, port in ports.items():
        if port in seen:
            raise LocalError(
                f"{name} and {seen[port]} are both set to port {port}",
                f"set one of them to another port: {setting_for(name)}=… or {setting_for(seen[port])}=…",
            )
        seen[port] = name
    return ports


def free(names: Iterable[str]) -> dict[str, int]:
    """A free port of `FREE` for each name."""
    taken: dict[str, int] = {}
    for name in names:
        for _ in range(2000):
            port = random.choice(FREE)
            if port not in taken.values() and is_free(port):
                taken[name] = port
                break
        else:
            raise LocalError(f"no free port between {FREE[0]} and {FREE[-1]}", "stop processes that use them")
    return taken


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    for address in (host, "0.0.0.0"):  # noqa: S104 - only a probe
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def require_free(name: str, port: int) -> None:
    if not is_free(port):
        raise LocalError(
            f"port {port} ({name}) is used by another process",
            f"stop that process (ss -ltnp 'sport = :{port}' shows it), or choose another port: "
            f"{setting_for(name)}=… for this one, PORT_BASE=… for all",
        )


def _number(environment: Mapping[str, str], key: str, default: int) -> int:
    text = environment.get(key, "").strip()
    if not text:
        return default
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise LocalError(
            f"{key}={text!r} is not a port", f"set {key} to a number from 1 to 65535, or unset it"
        )
    return int(text)
