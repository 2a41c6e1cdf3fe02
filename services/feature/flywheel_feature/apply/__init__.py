"""Applying definitions: rules, plan, lineage."""
