"""Adapters that call other services by gRPC."""
