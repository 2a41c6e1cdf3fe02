"""The gRPC edge: servicer, page tokens, filters and the conversion between protobuf and values."""
