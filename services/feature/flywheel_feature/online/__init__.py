"""Online reads: plan and lookup."""
