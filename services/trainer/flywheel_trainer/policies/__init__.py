"""Retraining policies: when drift, a schedule or a window starts a pipeline run."""
