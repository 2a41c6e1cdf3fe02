"""Keys, rows and columns as bytes and frames."""
