"""SQL expressions of on-demand views."""
