"""Point-in-time joins."""
