"""Adapters: PostgreSQL, Ray, S3, DBOS, and clients of the other services."""
