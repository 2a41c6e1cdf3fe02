"""The desired state of the registry and the routes applied from it."""
