"""Events that the registry emits when a version changes its stage or a rollout changes."""
