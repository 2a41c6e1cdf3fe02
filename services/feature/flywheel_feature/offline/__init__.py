"""The offline half of the feature service: point-in-time joins, training sets, skew checks."""
