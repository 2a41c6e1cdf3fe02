"""Pushes, stream processing, materialization, the archive."""
