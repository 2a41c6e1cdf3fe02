"""Trials of TUNE jobs: their records, which are best, and the registration of their models."""
