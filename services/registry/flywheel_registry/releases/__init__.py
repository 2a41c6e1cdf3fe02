"""Releases: a model version with calibration, threshold and fallback, immutable."""
