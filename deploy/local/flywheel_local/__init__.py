"""Starts and stops the real backends and services on one machine."""
