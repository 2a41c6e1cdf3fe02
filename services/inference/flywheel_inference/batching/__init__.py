"""Batches of concurrent requests."""
