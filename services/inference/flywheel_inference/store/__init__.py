"""Adapters by technology."""
