"""The platform of the integration tests."""

from tests.integration.feature.conftest import StreamWorkers, bucket, client, environment, server, workers

__all__ = ["StreamWorkers", "bucket", "client", "environment", "server", "workers"]
