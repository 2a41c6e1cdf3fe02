"""Ray as the compute engine."""
