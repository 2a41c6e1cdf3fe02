"""Training sets, point-in-time joins and skew checks."""
