"""Training of one model by several ranks: data, tensor and pipeline parallelism behind one interface."""
