"""Adapters on HTTP."""
