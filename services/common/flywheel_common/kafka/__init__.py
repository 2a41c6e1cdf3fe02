"""Kafka: topics, envelopes, producers, consumers, the outbox."""
