"""Adapters that call other services."""
