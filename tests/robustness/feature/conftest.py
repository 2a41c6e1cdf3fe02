"""The platform of the integration tests."""

from tests.support.servers.feature import StreamWorkers, bucket, client, environment, server, workers

__all__ = ["StreamWorkers", "bucket", "client", "environment", "server", "workers"]
