"""The kind EXPORT: a model in another number format, checked against its source."""
