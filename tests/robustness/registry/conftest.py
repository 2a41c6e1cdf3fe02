"""A registry in this process on real PostgreSQL and S3."""

from tests.integration.registry.conftest import client, monitor, registry, settings

__all__ = ["client", "monitor", "registry", "settings"]
