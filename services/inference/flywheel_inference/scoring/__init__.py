"""Scoring of batches: feature lookup, then the model, then calibration."""
