"""Tracking of experiments from any script: runs, metrics, artifacts, search, import and export."""
