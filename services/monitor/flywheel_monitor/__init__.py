"""Drift, performance and experiment evidence."""
