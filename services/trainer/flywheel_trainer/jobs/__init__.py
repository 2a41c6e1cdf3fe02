"""Jobs on the compute engine: specification, submission, supervision, logs."""
