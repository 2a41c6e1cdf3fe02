"""Built-in training code: what a TRAIN job runs on the compute engine."""
