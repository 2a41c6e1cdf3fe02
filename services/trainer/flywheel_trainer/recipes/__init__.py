"""Built-in training code: the part of the trainer that runs inside Ray."""
