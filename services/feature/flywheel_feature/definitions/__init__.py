"""Feature definitions as values."""
