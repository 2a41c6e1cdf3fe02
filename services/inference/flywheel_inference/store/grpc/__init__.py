"""Adapters for the registry and the feature service."""
