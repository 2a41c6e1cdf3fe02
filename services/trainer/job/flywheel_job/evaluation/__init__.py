"""Metrics and calibration of model scores, in NumPy."""
