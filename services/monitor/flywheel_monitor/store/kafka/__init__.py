"""Consumer positions and broker offsets."""
