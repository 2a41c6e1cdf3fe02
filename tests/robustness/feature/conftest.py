"""Fixtures of the robustness tests of the feature service."""

from tests.support.servers.feature import (
    StreamWorkers,
    client,
    environment,
    server,
    service_processes,
    tables,
    workers,
)

__all__ = ["StreamWorkers", "client", "environment", "server", "service_processes", "tables", "workers"]
