"""Windowed aggregation: tiles, moments, distinct counts."""
