"""The monitor's state in PostgreSQL and its archive in S3."""
