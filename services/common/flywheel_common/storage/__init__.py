"""Object storage: the port and its S3 adapter."""
