"""Encoding of domain rows as protobuf payloads, and decoding of the desired state."""
