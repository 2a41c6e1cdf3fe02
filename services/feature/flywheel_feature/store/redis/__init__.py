"""Redis adapters of the online store."""
