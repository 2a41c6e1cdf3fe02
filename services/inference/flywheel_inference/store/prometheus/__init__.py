"""Adapters for Prometheus."""
