"""Protobuf forms of domain values that the API and the stores share."""
