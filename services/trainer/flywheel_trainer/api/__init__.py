"""The gRPC edge: servicer, drift event handler, conversion between protobuf and domain."""
