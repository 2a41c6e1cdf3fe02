"""Ray's Jobs HTTP API."""
