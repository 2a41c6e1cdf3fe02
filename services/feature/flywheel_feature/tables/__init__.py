"""Offline tables: sources, files, content hashes."""
