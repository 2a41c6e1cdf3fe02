"""Adapters for Kafka."""
