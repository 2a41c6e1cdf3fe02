"""Promotion of model versions through their gates, and rejection."""
