"""What users of Flywheel import."""
