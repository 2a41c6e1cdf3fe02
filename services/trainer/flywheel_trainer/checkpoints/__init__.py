"""Checkpoints of jobs as records."""
