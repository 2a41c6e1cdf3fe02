"""The stages of a model version and the transitions between them."""
