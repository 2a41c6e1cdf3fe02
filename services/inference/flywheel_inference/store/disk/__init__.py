"""Adapters on the local disk."""
