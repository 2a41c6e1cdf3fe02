"""Adapters for Triton."""
