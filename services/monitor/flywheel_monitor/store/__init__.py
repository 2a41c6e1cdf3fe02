"""The monitor's state in PostgreSQL."""
