"""The Predict use case, with shadow copies."""
