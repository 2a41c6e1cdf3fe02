"""Batch inference: predictions of a release for every row of a table."""
