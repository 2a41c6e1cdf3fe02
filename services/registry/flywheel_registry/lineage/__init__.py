"""Lineage: what a resource was made from, and what was made from it."""
