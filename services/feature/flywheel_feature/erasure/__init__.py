"""Erasing an entity online, offline and in the archive."""
