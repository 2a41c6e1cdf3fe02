"""Training code and its runtime: the part of the trainer that runs inside Ray."""
