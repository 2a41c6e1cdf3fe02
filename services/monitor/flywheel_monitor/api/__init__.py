"""The gRPC edge: the servicer and the conversion between protobuf and domain types."""
