"""Training sets built in hash partitions."""
