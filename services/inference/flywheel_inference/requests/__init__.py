"""Prediction requests before and after routing."""
