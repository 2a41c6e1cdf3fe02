"""Routing of requests to the champion or the challenger."""
