"""Models: input tensor, loading into the model server, verification."""
