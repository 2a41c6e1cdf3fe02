"""Retraining policies: when drift starts a pipeline run."""
