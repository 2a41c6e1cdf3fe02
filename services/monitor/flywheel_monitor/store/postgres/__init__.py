"""The monitor's tables in PostgreSQL."""
