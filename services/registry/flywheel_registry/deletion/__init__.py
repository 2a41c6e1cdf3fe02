"""Deletes and restores models, versions and releases."""
