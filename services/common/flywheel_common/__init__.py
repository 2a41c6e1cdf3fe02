"""The runtime that the five Flywheel services share. It knows no service."""
