"""Start and stop of the real backends and services on one machine."""
