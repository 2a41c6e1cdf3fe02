"""Fallbacks for requests that the model cannot answer."""
