"""Collects stored bytes that nothing needs any more."""
