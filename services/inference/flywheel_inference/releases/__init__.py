"""Releases: feature set, model version, calibration, threshold and fallback policy."""
