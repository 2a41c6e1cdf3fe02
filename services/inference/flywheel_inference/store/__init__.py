"""Drivers: Triton, the peers, Kafka, Redis, the disk."""
