"""Fixtures of the integration tests of the feature service."""

from tests.support.servers.feature import (
    client,
    environment,
    server,
    service_processes,
    tables,
    workers,
)

__all__ = ["client", "environment", "server", "service_processes", "tables", "workers"]
