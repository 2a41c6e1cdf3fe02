"""The runtime that the five Flywheel services share. It imports no service."""
