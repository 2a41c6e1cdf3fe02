"""The registry as a process of its own, on the backends of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flywheel_registry.config import RegistrySettings

COMMAND = [sys.executable, "-m", "flywheel_registry"]
_FIELDS = (
    "listen",
    "metrics_listen",
    "kafka_bootstrap",
    "s3_endpoint",
    "s3_bucket",
    "monitor_address",
    "tick_seconds",
    "tick_lease_seconds",
    "log_rpcs",
)


def environment(settings: RegistrySettings) -> dict[str, str]:
    """Return the environment of a registry process with these settings."""
    values = settings.model_dump()
    secrets = {
        "postgres_dsn": settings.dsn,
        "s3_access_key": settings.s3_access_key.get_secret_value(),
        "s3_secret_key": settings.s3_secret_key.get_secret_value(),
    }
    fields = {name: str(values[name]) for name in _FIELDS} | secrets
    return {**os.environ, **{f"FLYWHEEL_REGISTRY_{name.upper()}": value for name, value in fields.items()}}


def command(env: dict[str, str], verb: str) -> subprocess.CompletedProcess[str]:
    """Run `flywheel-registry VERB` and return its result."""
    return subprocess.run([*COMMAND, verb], env=env, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def process(env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `flywheel-registry serve`; kill -9 at the end of the block."""
    with log.open("ab") as out:
        running = subprocess.Popen([*COMMAND, "serve"], env=env, stdout=out, stderr=out)
        try:
            yield running
        finally:
            running.kill()
            running.wait()
