"""Adapters for Redis."""
