"""The object store of an attempt, which has no key: the trainer signs each of its requests."""
