"""Drivers: PostgreSQL, Redis, Kafka, S3."""
