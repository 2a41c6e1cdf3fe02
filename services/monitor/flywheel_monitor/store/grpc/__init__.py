"""The registry and the feature service over gRPC."""
