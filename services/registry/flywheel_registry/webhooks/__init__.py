"""Webhooks: HTTP notifications of stage and rollout changes."""
