"""The gRPC edge of a service and its channels to peers."""
