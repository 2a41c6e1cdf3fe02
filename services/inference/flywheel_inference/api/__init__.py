"""The gRPC edge: servicer and conversion between protobuf and domain."""
