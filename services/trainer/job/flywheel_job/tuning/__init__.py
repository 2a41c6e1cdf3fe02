"""Tuning: the search over hyperparameters of a TUNE job, and its trials."""
