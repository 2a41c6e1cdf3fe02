"""The policies of a model: bounds of its gates and the steps of its rollouts."""
