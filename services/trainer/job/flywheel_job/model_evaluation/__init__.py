"""The kind EVALUATE: metrics of a model on labelled rows."""
