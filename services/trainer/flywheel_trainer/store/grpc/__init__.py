"""Clients of the feature service and the registry."""
