"""Evidence: the frozen numbers that a gate or a rollout step was decided by."""
