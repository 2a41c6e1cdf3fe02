"""Online predictions through Triton."""
