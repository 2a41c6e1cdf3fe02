"""The gRPC edge: servicer, method mixins, conversion between protobuf and domain."""
