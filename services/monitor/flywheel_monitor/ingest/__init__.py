"""Predictions and outcomes from Kafka: decoding, dead letters, counting, consumer lag."""
